"""What the tools do, as functions."""

import os
import sys

try:
    os.getcwd()
except FileNotFoundError:  # torch's import would end the process with a traceback
    sys.stderr.write('error: the current folder was removed: change to another one\n')
    sys.exit(2)

# isort: split
from .convert_weights import convert_weights
from .test import test
from .train import train

__all__ = ['convert_weights', 'test', 'train']
