"""Operators: tensors in, tensors out, no knowledge of models."""

from .cycle_fc import CycleFC, cycle_fc, cycle_offsets, cycle_shift
from .cycle_mixer import (
    BACKENDS,
    KERNEL_H,
    KERNEL_W,
    MixerWeights,
    ReweightWeights,
    branch_weights,
    cycle_mixer,
    reference_mixer,
)
from .factor_attention import factor_attention, factor_attention_reference
from .mlp_chunks import chunked_mlp

__all__ = [
    'BACKENDS',
    'KERNEL_H',
    'KERNEL_W',
    'CycleFC',
    'MixerWeights',
    'ReweightWeights',
    'branch_weights',
    'chunked_mlp',
    'cycle_fc',
    'cycle_mixer',
    'cycle_offsets',
    'cycle_shift',
    'factor_attention',
    'factor_attention_reference',
    'reference_mixer',
]
