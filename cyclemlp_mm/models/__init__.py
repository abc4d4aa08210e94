"""Backbones; importing this package registers them in mmengine's root registry."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.registry import MODELS
from torch import nn

from cyclemlp_mm.errors import MissingToolboxError

from .conv_norm import SyncBNOrBN, to_deploy
from .cyclemlp import CycleMLP
from .mpvit import MPViT

__all__ = ['CycleMLP', 'MPViT', 'SyncBNOrBN', 'to_deploy']


@MODELS.register_module(name=['DenseRepMLPNet', 'RepMLPNet'])
def build_repmlp(arch: str | Mapping = 'base', **kwargs: object) -> nn.Module:
    """A :class:`~cyclemlp_mm.models.repmlp.DenseRepMLPNet`, from the registry.

    Its blocks are mmpretrain's, which is slow to import: the first one that is built imports it,
    and registers the class in place of this function.

    Raises:
        MissingToolboxError: mmpretrain cannot be imported.
    """
    try:
        from .repmlp import DenseRepMLPNet
    except ImportError as error:
        raise MissingToolboxError(
            f'RepMLPNet needs mmpretrain, which cannot be imported ({error}): in a checkout, run '
            "`make setup`; elsewhere, `pip install 'cyclemlp_mm[cls]'`"
        ) from error
    return DenseRepMLPNet(arch, **kwargs)
