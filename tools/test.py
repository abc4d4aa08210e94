#!/usr/bin/env python
"""Evaluate a checkpoint; see --help."""

from _start import start

if __name__ == '__main__':
    start('test')
