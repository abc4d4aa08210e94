#!/usr/bin/env python
"""Serve a page that predicts images dropped on it; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('web')
