#!/usr/bin/env python
"""Convert weights between formats; see --help."""

from cyclemlp_mm.apis.convert_weights import convert_weights
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(convert_weights)
