#!/usr/bin/env python
"""Write the model zoo's pages from the metafiles; see --help."""

from cyclemlp_mm.apis.model_zoo import model_zoo
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(model_zoo)
