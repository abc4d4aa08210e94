"""Between a config and mmengine's Runner: config files, toolboxes, own data, process start."""

from .amp import CpuAmpOptimWrapper
from .atomic_checkpoints import AtomicCheckpointHook
from .bad_images import SkipBadImages
from .check_weights import CheckLoadedWeights
from .config_files import config_path, configs_dir, find_config, load_config, tools_dir
from .deploy_hook import DeployModel
from .draw_results import DrawResults
from .launch import finish_launch, is_first_process, no_teardown_under_gloo, prepare_launch
from .non_finite import StopOnNonFiniteLoss
from .own_data import use_own_data
from .palette import class_palette
from .patient_logger import PatientLoggerHook
from .resume import resume_training
from .robust import check_loaded_weights, make_robust, skip_bad_images
from .sharded import ShardedStrategy, shard_layers
from .stop_on_signal import StopOnSignal
from .toolbox import require_toolbox
from .train_loops import ResumableEpochLoop, ResumableIterLoop

__all__ = [
    'AtomicCheckpointHook',
    'CheckLoadedWeights',
    'CpuAmpOptimWrapper',
    'DeployModel',
    'DrawResults',
    'PatientLoggerHook',
    'ResumableEpochLoop',
    'ResumableIterLoop',
    'ShardedStrategy',
    'SkipBadImages',
    'StopOnNonFiniteLoss',
    'StopOnSignal',
    'check_loaded_weights',
    'class_palette',
    'config_path',
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
    'tools_dir',
    'use_own_data',
]
