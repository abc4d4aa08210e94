#!/usr/bin/env python
"""Draw what a model does and how its training went; see --help."""

from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.apis.visualize import visualize

if __name__ == '__main__':
    run_tool(visualize)
