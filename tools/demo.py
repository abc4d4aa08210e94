#!/usr/bin/env python
"""Train and draw on generated images; see --help."""

from cyclemlp_mm.apis.demo import demo
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(demo)
