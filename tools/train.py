#!/usr/bin/env python
"""Train a model; see --help."""

from cyclemlp_mm.apis import train
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(train)
