"""Backbones; importing this package registers them in mmengine's root registry."""

from .cyclemlp import CycleMLP
from .norms import SyncBNOrBN

__all__ = ['CycleMLP', 'SyncBNOrBN']
