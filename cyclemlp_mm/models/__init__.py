"""Backbones; importing this package registers them in mmengine's root registry."""

from .cyclemlp import CycleMLP
from .deploy import to_deploy
from .mpvit import MPViT
from .norms import SyncBNOrBN

__all__ = ['CycleMLP', 'MPViT', 'SyncBNOrBN', 'to_deploy']
