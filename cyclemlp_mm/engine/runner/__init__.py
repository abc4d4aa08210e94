"""Loops, strategies, and the start and resuming of a run."""

from .launch import CpuAmpOptimWrapper
from .loops import PatientValLoop, ResumableEpochLoop, ResumableIterLoop
from .strategy import ShardedStrategy, shard_layers

__all__ = [
    'CpuAmpOptimWrapper',
    'PatientValLoop',
    'ResumableEpochLoop',
    'ResumableIterLoop',
    'ShardedStrategy',
    'shard_layers',
]
