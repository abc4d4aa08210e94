"""Classifiers; needs mmpretrain, so configs import it by ``custom_imports``."""

from .distillation import DistilledClassifier, hard_distillation_loss, soft_distillation_loss
from .model_hub import add_to_mmpretrain

__all__ = [
    'DistilledClassifier',
    'add_to_mmpretrain',
    'hard_distillation_loss',
    'soft_distillation_loss',
]
