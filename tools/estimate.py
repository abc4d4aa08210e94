#!/usr/bin/env python
"""Estimate the memory of a training step; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('estimate')
