#!/usr/bin/env python
"""Check data, config and machine before a training; see --help."""

from _start import start

if __name__ == '__main__':
    start('check')
