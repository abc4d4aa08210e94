#!/usr/bin/env python
"""Draw what a model does and how its training went; see --help."""

from _start import start

if __name__ == '__main__':
    start('visualize')
