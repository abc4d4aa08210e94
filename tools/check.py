#!/usr/bin/env python
"""Check data, config and machine before a training; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('check')
