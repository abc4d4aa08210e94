#!/usr/bin/env python
"""Measure speed and memory against the published form; see --help."""

from cyclemlp_mm.apis.benchmark import benchmark
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(benchmark)
