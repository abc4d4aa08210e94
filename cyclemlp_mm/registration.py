"""Names in mmengine's root registry, without the import of torch or of a toolbox."""

from __future__ import annotations

import functools
import importlib
import logging
from typing import TYPE_CHECKING

from mmengine.registry import MODELS

from . import openmmlab
from .errors import MissingToolboxError

if TYPE_CHECKING:
    from torch import nn

#: Modules of the registered backbones. 'RepMLPNet' is an earlier name of DenseRepMLPNet.
BACKBONES = {
    'CycleMLP': 'cyclemlp_mm.models.cyclemlp',
    'MPViT': 'cyclemlp_mm.models.mpvit',
    'DenseRepMLPNet': 'cyclemlp_mm.models.repmlp',
    'RepMLPNet': 'cyclemlp_mm.models.repmlp',
}


def register_backbones() -> None:
    """Register a function for each backbone.

    The first call of it imports the module, which registers the class in place of the function.
    """
    for name, module in BACKBONES.items():
        if MODELS.get(name) is None:
            MODELS.register_module(name=name, module=_builder(name, module))


def _builder(name: str, module: str):
    def build(*args, **kwargs) -> nn.Module:
        try:
            backbone = getattr(importlib.import_module(module), name)
        except ImportError as error:
            if not module.endswith('.repmlp'):  # the one whose blocks are mmpretrain's
                raise
            raise MissingToolboxError(
                f'{name} needs mmpretrain, which cannot be imported ({error}): in a checkout, run '
                f'`make setup`; elsewhere, `pip install {openmmlab.requirement("cls")}`'
            ) from error
        return backbone(*args, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f'Build a :class:`{module}.{name}`.'
    return build


@MODELS.register_module()
class SyncBNOrBN:
    """Builds SyncBN where it can run, else BN, which is logged once.

    SyncBN needs a GPU and more than one process; on one GPU it equals BN, on a CPU it stops. The
    choice is made when the model is built, after the start of the process group, so that it holds
    under any tool that builds the config. Both have the same parameter names.

    Arguments are those of ``torch.nn.BatchNorm2d``. The object is a ``torch.nn.SyncBatchNorm`` or a
    ``torch.nn.BatchNorm2d``.
    """

    _abbr_ = 'bn'  # mmcv names the layer by this, as it would SyncBN and BN

    def __new__(cls, num_features: int, **kwargs) -> nn.Module:
        import torch
        from mmengine.dist import get_world_size

        if get_world_size() > 1 and torch.cuda.is_available():
            return torch.nn.SyncBatchNorm(num_features, **kwargs)
        _warn_of_bn(get_world_size())
        return torch.nn.BatchNorm2d(num_features, **kwargs)


@functools.cache
def _warn_of_bn(world_size: int) -> None:
    from mmengine.logging import print_log

    why = 'there is one process'
    if world_size > 1:
        why = 'there is no GPU: batch statistics are per process'
    print_log(f'BN is used in place of SyncBN, as {why}', 'current', logging.WARNING)
