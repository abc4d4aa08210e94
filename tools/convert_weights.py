#!/usr/bin/env python
"""Convert weights between formats; see --help."""

from _start import start

if __name__ == '__main__':
    start('convert_weights')
