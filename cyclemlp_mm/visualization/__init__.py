"""Pictures of predictions, of models and of training runs."""

from .curves import draw_curves, read_scalars

__all__ = ['draw_curves', 'read_scalars']
