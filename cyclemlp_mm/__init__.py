"""MLP-like backbones for OpenMMLab.

Importing this package registers the names of its backbones in mmengine's root registry, so that
mmdet, mmseg and mmpretrain can all build them, and does nothing else, except for a warning where
packages of OpenMMLab are installed over each other. It imports mmengine's
registry only; a backbone's module, and torch, are imported when the first one is built. Hooks,
loops and data sets are registered by :mod:`cyclemlp_mm.engine`, which configs name in
``custom_imports``.
"""

from . import openmmlab
from .errors import MissingToolboxError
from .version import __version__

__all__ = ['__version__', 'config_path']

openmmlab.warn_of_conflict()
try:
    from .registration import register_backbones
except ImportError as error:
    if (error.name or '').split('.')[0] != 'mmengine':
        raise
    raise MissingToolboxError(openmmlab.how_to_get_mmengine(error)) from error
register_backbones()


def config_path(name: str) -> str:
    """Path of a config of this project; see :func:`cyclemlp_mm.engine.config_files.config_path`."""
    from .engine.config_files import config_path as find

    return find(name)
