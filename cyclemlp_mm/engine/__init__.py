"""Between a config and mmengine's Runner: config files, toolboxes, own data, process start.

Importing it lets OpenMMLab's inferencers take our configs by name, see :mod:`.config_names`.
"""

from .amp import CpuAmpOptimWrapper
from .check_weights import CheckLoadedWeights
from .config_files import configs_dir, find_config, load_config, tools_dir
from .config_names import register_config_names
from .launch import finish_launch, prepare_launch
from .own_data import use_own_data
from .palette import class_palette
from .toolbox import require_toolbox

register_config_names()

__all__ = [
    'CheckLoadedWeights',
    'CpuAmpOptimWrapper',
    'class_palette',
    'configs_dir',
    'find_config',
    'finish_launch',
    'load_config',
    'prepare_launch',
    'register_config_names',
    'require_toolbox',
    'tools_dir',
    'use_own_data',
]
