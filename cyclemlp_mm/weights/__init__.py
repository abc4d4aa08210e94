"""Published files in, our names out: safe reading, renaming and strict loading of weights."""

from cyclemlp_mm.errors import CheckpointError

from .cyclemlp import CYCLEMLP_FORMAT
from .files import allow_unsafe_loading, is_unsafe_loading, read_checkpoint, unsafe_loading
from .loading import LoadReport, check_fit, init_from_checkpoint, load_strictly, split_pretrained
from .mmengine_loader import install_safe_loading, keep_for_loading, read_before_loading
from .mpvit import MPVIT_FORMAT
from .published import PublishedFormat
from .repmlp import REPMLP_FORMAT

__all__ = [
    'CYCLEMLP_FORMAT',
    'MPVIT_FORMAT',
    'REPMLP_FORMAT',
    'CheckpointError',
    'LoadReport',
    'PublishedFormat',
    'allow_unsafe_loading',
    'check_fit',
    'init_from_checkpoint',
    'install_safe_loading',
    'is_unsafe_loading',
    'keep_for_loading',
    'load_strictly',
    'read_before_loading',
    'read_checkpoint',
    'split_pretrained',
    'unsafe_loading',
]
