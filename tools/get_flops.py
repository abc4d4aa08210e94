#!/usr/bin/env python
"""Count parameters and multiply-adds; see --help."""

from _start import start

if __name__ == '__main__':
    start('get_flops')
