"""Backbones; importing this package registers their classes in mmengine's root registry."""

from cyclemlp_mm.registration import SyncBNOrBN

from .conv_norm import to_deploy
from .cyclemlp import CycleMLP
from .mpvit import MPViT

__all__ = ['CycleMLP', 'MPViT', 'SyncBNOrBN', 'to_deploy']
