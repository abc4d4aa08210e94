#!/usr/bin/env python
"""Convert weights between formats; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('convert_weights')
