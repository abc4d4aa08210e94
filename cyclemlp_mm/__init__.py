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
    """Path of a shipped config, which the APIs of all toolboxes take.

    Args:
        name (str): Its name, with or without ``.py``.

    Raises:
        MissingFileError: There is no config of that name; suggests near ones.
    """
    from .engine.config_files import configs_dir, find_config

    path = configs_dir() / f'{name.removesuffix(".py")}.py'
    return str(path) if path.is_file() else str(find_config(name))
