"""Operators: tensors in, tensors out, no knowledge of models."""

from .cycle_fc import CycleFC, cycle_fc, cycle_offsets, cycle_shift
from .cycle_mixer import (
    KERNEL_H,
    KERNEL_W,
    MixerWeights,
    ReweightWeights,
    cycle_mixer,
    reference_mixer,
)
from .factor_attention import factor_attention, factor_attention_reference
from .mlp_chunks import chunked_mlp

__all__ = [
    'KERNEL_H',
    'KERNEL_W',
    'CycleFC',
    'MixerWeights',
    'ReweightWeights',
    'chunked_mlp',
    'cycle_fc',
    'cycle_mixer',
    'cycle_offsets',
    'cycle_shift',
    'factor_attention',
    'factor_attention_reference',
    'reference_mixer',
]
