#!/usr/bin/env python
"""Count parameters and multiply-adds; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('get_flops')
