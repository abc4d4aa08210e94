"""Published files in, our names out: reading, renaming and strict loading of weights."""

from cyclemlp_mm.errors import CheckpointError

from .cyclemlp import CYCLEMLP_FORMAT
from .files import read_checkpoint
from .loading import LoadReport, init_from_checkpoint, load_strictly, split_pretrained
from .published import PublishedFormat

__all__ = [
    'CYCLEMLP_FORMAT',
    'CheckpointError',
    'LoadReport',
    'PublishedFormat',
    'init_from_checkpoint',
    'load_strictly',
    'read_checkpoint',
    'split_pretrained',
]
