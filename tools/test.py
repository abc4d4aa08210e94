#!/usr/bin/env python
"""Evaluate a checkpoint; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('test')
