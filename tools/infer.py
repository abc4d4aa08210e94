#!/usr/bin/env python
"""Predict images and videos; see --help."""

from _start import start

if __name__ == '__main__':
    start('infer')
