#!/usr/bin/env python
"""Write a model as ONNX or torch.export file; see --help."""

from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('export')
