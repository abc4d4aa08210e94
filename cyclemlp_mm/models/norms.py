"""Norms: built from a config, folded into a convolution, and one that also runs without a GPU."""

from __future__ import annotations

import functools
import logging

import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from cyclemlp_mm.ops.untouched import listened_to

from .arguments import check_bool


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


_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
#: PyTorch's modules that can stand for a norm of NCHW maps; Identity for none. Others' are taken at
#: their word.
_NCHW_NORMS = (*_BATCH_NORMS, nn.GroupNorm, nn.InstanceNorm2d, nn.Identity)


def build_norm(norm_cfg: dict | None, channels: int) -> nn.Module:
    """A norm of NCHW maps.

    Args:
        norm_cfg (dict, optional): ``type`` 'BN', 'SyncBN', 'SyncBNOrBN', 'GN', what mmengine's
            registry knows, or a class, and its arguments; ``requires_grad`` (default True) says
            whether its parameters are trained. Defaults to None: BN.
        channels (int): Channels.

    Raises:
        TypeError: Not a dict with a type, or ``requires_grad`` is no bool.
        KeyError: The type is not known.
        ValueError: The type is no norm of NCHW maps.
    """
    norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
    if not isinstance(norm_cfg, dict) or 'type' not in norm_cfg:
        raise TypeError(f"norm_cfg must be a dict with the key 'type', but got {norm_cfg!r}")
    settings = dict(norm_cfg)
    kind, requires_grad = settings.pop('type'), settings.pop('requires_grad', True)
    check_bool('norm_cfg requires_grad', requires_grad)
    known = dict(BN=nn.BatchNorm2d, BN2d=nn.BatchNorm2d, SyncBN=nn.SyncBatchNorm, GN=nn.GroupNorm)
    layer = kind
    if isinstance(kind, str):
        layer = known.get(kind) or MODELS.get(kind)
        if layer is None:
            raise KeyError(f'norm_cfg type {kind!r} is not in the model registry')
    wrong = ValueError(
        f'norm_cfg type {kind!r} is no norm of (B, C, H, W) maps; such are BN, SyncBN, SyncBNOrBN, '
        'GN and IN'
    )
    if not callable(layer) or _is_other_torch_layer(layer):
        raise wrong
    if layer is nn.GroupNorm:
        norm = layer(num_channels=channels, **settings)
    else:
        norm = layer(channels, **settings)
    if not isinstance(norm, nn.Module):
        raise wrong
    return norm.requires_grad_(requires_grad)


def _is_other_torch_layer(layer: object) -> bool:
    """Whether it is PyTorch's own, and would fail in the first forward pass or norm nothing."""
    if not isinstance(layer, type) or issubclass(layer, _NCHW_NORMS):
        return False
    return issubclass(layer, nn.Module) and layer.__module__.startswith('torch.nn.')


def fix_statistics(module: nn.Module) -> None:
    """Put every BatchNorm in a module in eval mode: its statistics are used and not updated."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def _is_batch_norm(norm: nn.Module) -> bool:
    """Whether it norms as BatchNorm does; a class that does more has a ``forward`` of its own."""
    batch_norm = nn.modules.batchnorm._BatchNorm
    known = (batch_norm.forward, nn.SyncBatchNorm.forward)
    return isinstance(norm, batch_norm) and type(norm).forward in known


def is_plain_batch_norm(norm: nn.Module) -> bool:
    """Whether a norm has statistics, weight and bias, and nothing listens to it."""
    return (
        _is_batch_norm(norm)
        and norm.affine
        and norm.running_mean is not None
        and (not listened_to(norm))
    )


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of the convolution that equals ``norm(conv(x))``.

    Returns:
        tuple: (out, in / groups, k, k) and (out,), differentiable; (None, None) where there is no
        such convolution: the norm takes its statistics from its input, or does more than that.
    """
    if isinstance(norm, nn.Identity):
        return conv.weight, conv.bias
    if not _is_batch_norm(norm) or norm.training or norm.running_mean is None or listened_to(norm):
        return None, None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.affine:
        shift = shift + norm.bias
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift
