#!/usr/bin/env python
"""Draw what a model does and how its training went; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('visualize')
