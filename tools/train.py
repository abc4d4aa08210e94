#!/usr/bin/env python
"""Train a model; see --help."""

import signal
import sys

if __name__ == '__main__':  # the imports take seconds; 75: stopped, start it again
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))

# isort: split
from cyclemlp_mm.apis.run_tool import start

if __name__ == '__main__':
    start('train')
