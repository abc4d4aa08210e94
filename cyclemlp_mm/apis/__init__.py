"""What the tools do, as functions, each in the module of its name.

Each takes ``argv``, the arguments of its tool, by default the process's own. It raises a
:class:`~cyclemlp_mm.errors.UserError` with what is wrong and how to fix it.
Importing this package imports nothing heavy.
"""

import os
import sys

try:
    os.getcwd()
except FileNotFoundError:  # torch's import would end the process with a traceback
    sys.stderr.write('error: the current folder was removed: change to another one\n')
    sys.exit(2)
