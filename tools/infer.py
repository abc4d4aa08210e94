#!/usr/bin/env python
"""Predict images and videos; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('infer')
