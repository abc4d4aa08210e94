"""Pictures of predictions and of training runs."""

from .boxes import draw_gallery
from .curves import draw_loss_curve, read_scalars

__all__ = ['draw_gallery', 'draw_loss_curve', 'read_scalars']
