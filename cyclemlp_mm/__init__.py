"""MLP-like backbones for OpenMMLab.

Importing this package registers its backbones in mmengine's root registry, so that mmdet, mmseg
and mmpretrain can all build them. It needs torch and mmengine only.
"""

from . import datasets, engine, models  # noqa: F401 - imported for what they register
from .engine import config_path
from .version import __version__

__all__ = ['__version__', 'config_path']
