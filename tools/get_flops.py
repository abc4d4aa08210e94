#!/usr/bin/env python
"""Count parameters and multiply-adds; see --help."""

from cyclemlp_mm.apis.get_flops import get_flops
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(get_flops)
