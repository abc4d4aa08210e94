"""Between a config and mmengine's Runner: config files, toolboxes, own data, process start."""

from .amp import CpuAmpOptimWrapper
from .check_weights import CheckLoadedWeights
from .config_files import configs_dir, find_config, load_config, tools_dir
from .deploy_hook import DeployModel
from .launch import finish_launch, prepare_launch
from .own_data import use_own_data
from .palette import class_palette
from .toolbox import require_toolbox

__all__ = [
    'CheckLoadedWeights',
    'CpuAmpOptimWrapper',
    'DeployModel',
    'class_palette',
    'configs_dir',
    'find_config',
    'finish_launch',
    'load_config',
    'prepare_launch',
    'require_toolbox',
    'tools_dir',
    'use_own_data',
]
