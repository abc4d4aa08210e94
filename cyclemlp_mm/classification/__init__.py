"""Classifiers; needs mmpretrain, so a config names it: ``custom_imports``."""

from .distillation import DistilledClassifier
from .distillation_loss import hard_distillation_loss, soft_distillation_loss

__all__ = ['DistilledClassifier', 'hard_distillation_loss', 'soft_distillation_loss']
