#!/usr/bin/env python
"""Write a model as ONNX or torch.export file; see --help."""

from _start import start

if __name__ == '__main__':
    start('export')
