"""Between a config and mmengine's Runner: config files, toolboxes, own data, hooks, loops."""

from .bad_images import SkipBadImages
from .config_data import class_palette
from .config_files import configs_dir, find_config, load_config, require_toolbox
from .hooks.check_weights import CheckLoadedWeights
from .hooks.checkpoint import AtomicCheckpointHook
from .hooks.logger import PatientLoggerHook
from .hooks.stop import StopOnNonFiniteLoss, StopOnSignal
from .hooks.testing import DeployModel, DrawResults
from .own_data import use_own_data
from .runner.launch import (
    CpuAmpOptimWrapper,
    finish_launch,
    is_first_process,
    no_teardown_under_gloo,
    prepare_launch,
)
from .runner.loops import PatientValLoop, ResumableEpochLoop, ResumableIterLoop
from .runner.resume import resume_training
from .runner.strategy import ShardedStrategy, shard_layers
from .training_config import check_loaded_weights, make_robust, skip_bad_images

__all__ = [
    'AtomicCheckpointHook',
    'CheckLoadedWeights',
    'CpuAmpOptimWrapper',
    'DeployModel',
    'DrawResults',
    'PatientLoggerHook',
    'PatientValLoop',
    'ResumableEpochLoop',
    'ResumableIterLoop',
    'ShardedStrategy',
    'SkipBadImages',
    'StopOnNonFiniteLoss',
    'StopOnSignal',
    'check_loaded_weights',
    'class_palette',
    'configs_dir',
    'find_config',
    'finish_launch',
    'is_first_process',
    'load_config',
    'make_robust',
    'no_teardown_under_gloo',
    'prepare_launch',
    'require_toolbox',
    'resume_training',
    'shard_layers',
    'skip_bad_images',
    'use_own_data',
]
