#!/usr/bin/env python
"""Predict images and videos; see --help."""

from cyclemlp_mm.apis.infer import infer
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(infer)
