"""Data: label checks for training, and the generator of demo data."""

from .check_labels import CheckLabels

__all__ = ['CheckLabels']
