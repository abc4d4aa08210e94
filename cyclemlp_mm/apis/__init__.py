"""What the tools do, as functions."""

from .convert_weights import convert_weights
from .test import test
from .train import train

__all__ = ['convert_weights', 'test', 'train']
