"""Operators: tensors in, tensors out, no knowledge of models."""

from .cycle_fc import CycleFC, cycle_fc, cycle_offsets, cycle_shift
from .cycle_mixer import (
    KERNEL_H,
    KERNEL_W,
    MixerWeights,
    ReweightWeights,
    branch_weights,
    cycle_mixer,
)

__all__ = [
    'KERNEL_H',
    'KERNEL_W',
    'CycleFC',
    'MixerWeights',
    'ReweightWeights',
    'branch_weights',
    'cycle_fc',
    'cycle_mixer',
    'cycle_offsets',
    'cycle_shift',
]
