"""Hooks that configs name, or that the tools add to a run."""

from .check_weights import CheckLoadedWeights
from .checkpoint import AtomicCheckpointHook
from .logger import PatientLoggerHook, ProgressBar, progress_bar
from .stop import NonFiniteLossError, StopOnNonFiniteLoss, StopOnSignal, TrainingStopped, stoppable
from .testing import DeployModel, DrawResults

__all__ = [
    'AtomicCheckpointHook',
    'CheckLoadedWeights',
    'DeployModel',
    'DrawResults',
    'NonFiniteLossError',
    'PatientLoggerHook',
    'ProgressBar',
    'StopOnNonFiniteLoss',
    'StopOnSignal',
    'TrainingStopped',
    'progress_bar',
    'stoppable',
]
