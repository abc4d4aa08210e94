#!/usr/bin/env python
"""Evaluate a checkpoint; see --help."""

from cyclemlp_mm.apis import test
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(test)
