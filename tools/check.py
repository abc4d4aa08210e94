#!/usr/bin/env python
"""Check data, config and machine before a training; see --help."""

from cyclemlp_mm.apis.check import check
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(check)
