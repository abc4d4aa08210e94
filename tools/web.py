#!/usr/bin/env python
"""Serve a page that predicts images dropped on it; see --help."""

from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.apis.web import web

if __name__ == '__main__':
    run_tool(web)
