#!/usr/bin/env python
"""Serve a page that predicts images dropped on it; see --help."""

from _start import start

if __name__ == '__main__':
    start('web')
