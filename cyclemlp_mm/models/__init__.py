"""Backbones; importing this package registers them in mmengine's root registry."""

from .cyclemlp import CycleMLP

__all__ = ['CycleMLP']
