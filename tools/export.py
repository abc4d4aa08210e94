#!/usr/bin/env python
"""Write a model as ONNX or torch.export file; see --help."""

from cyclemlp_mm.apis.export import export
from cyclemlp_mm.apis.run_tool import run_tool

if __name__ == '__main__':
    run_tool(export)
