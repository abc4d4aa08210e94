"""Classifiers; needs mmpretrain, so a config names it: ``custom_imports``."""

from .distillation import DistilledClassifier
from .distillation_loss import hard_distillation_loss, soft_distillation_loss
from .model_hub import add_to_mmpretrain

__all__ = [
    'DistilledClassifier',
    'add_to_mmpretrain',
    'hard_distillation_loss',
    'soft_distillation_loss',
]
