"""A norm for configs that train on many GPUs and must also run on one, or none."""

import functools
import logging

import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class SyncBNOrBN:
    """Builds SyncBN where it can run, BN elsewhere, and says so once.

    SyncBN needs a GPU and more than one process; on one GPU it equals BN, on a CPU it stops. The
    choice falls when the model is built, behind the start of the process group, so that it holds
    under any tool that builds the config. Both have the same parameter names.

    Args:
        num_features (int): Channels.
        **kwargs: As for ``torch.nn.BatchNorm2d``.

    Returns:
        nn.SyncBatchNorm | nn.BatchNorm2d
    """

    _abbr_ = 'bn'  # mmcv names the layer by this, as it would SyncBN and BN

    def __new__(cls, num_features: int, **kwargs) -> nn.Module:
        if get_world_size() > 1 and torch.cuda.is_available():
            return nn.SyncBatchNorm(num_features, **kwargs)
        _say_fallback(get_world_size(), torch.cuda.is_available())
        return nn.BatchNorm2d(num_features, **kwargs)


@functools.cache
def _say_fallback(world_size: int, has_gpu: bool) -> None:
    why = 'there is one process' if world_size == 1 else 'there is no GPU'
    consequence = '' if world_size == 1 else ': batch statistics are per process'
    print_log(f'BN is used in place of SyncBN, as {why}{consequence}', 'current', logging.WARNING)
