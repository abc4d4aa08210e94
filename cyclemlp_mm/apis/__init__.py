"""What the tools do, as functions: each in the module of its name. Imports nothing heavy."""

import os
import sys

try:
    os.getcwd()
except FileNotFoundError:  # torch's import would end the process with a traceback
    sys.stderr.write('error: the current folder was removed: change to another one\n')
    sys.exit(2)
