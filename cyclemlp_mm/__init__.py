"""MLP-like backbones for OpenMMLab.

Importing this package registers its backbones in mmengine's root registry, so that mmdet, mmseg
and mmpretrain can all build them. It needs torch and mmengine only.
"""

import os as _os
import sys as _sys

if 'torch' not in _sys.modules:  # whose import would end the process with less to go by
    try:
        _os.getcwd()
    except FileNotFoundError:
        _sys.stderr.write('error: the current folder was removed: change to another one\n')
        _sys.exit(2)

from . import datasets, engine, models  # noqa: F401 - imported for what they register
from .engine import config_path
from .version import __version__

__all__ = ['__version__', 'config_path']
