"""Operators: tensors in, tensors out, no knowledge of models."""

from .cycle_fc import CycleFC, cycle_fc, cycle_offsets, cycle_shift
from .cycle_mixer import cycle_mixer
from .factor_attention import factor_attention, factor_attention_reference
from .mixer_backend import BACKENDS, check_backend
from .mixer_folded import apply_matrix, fixed_matrix
from .mixer_weights import (
    KERNEL_H,
    KERNEL_W,
    MixerWeights,
    ReweightWeights,
    branch_weights,
    softmax_branches,
)
from .mlp_chunks import chunked_mlp
from .untouched import untouched

__all__ = [
    'BACKENDS',
    'KERNEL_H',
    'KERNEL_W',
    'CycleFC',
    'MixerWeights',
    'ReweightWeights',
    'apply_matrix',
    'branch_weights',
    'check_backend',
    'chunked_mlp',
    'cycle_fc',
    'cycle_mixer',
    'cycle_offsets',
    'cycle_shift',
    'factor_attention',
    'factor_attention_reference',
    'fixed_matrix',
    'softmax_branches',
    'untouched',
]
