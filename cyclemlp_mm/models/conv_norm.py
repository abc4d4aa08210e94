"""Convolutions with norm and activation, and how norms are built, folded, and folded for good."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from cyclemlp_mm.ops.recording import has_hooks, is_plain_layer, needs_grad

from .arch import check_bool
from .layers import seen_as_nchw

BatchNorm = nn.modules.batchnorm._BatchNorm
_NORMS = dict(BN=nn.BatchNorm2d, BN2d=nn.BatchNorm2d, SyncBN=nn.SyncBatchNorm, GN=nn.GroupNorm)
#: PyTorch's modules for a norm of NCHW maps; third-party classes are accepted unchecked.
_NCHW_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.Identity)


def build_norm(norm_cfg: dict | None, channels: int) -> nn.Module:
    """A norm of NCHW maps.

    ``norm_cfg`` has a ``type`` ('BN', 'SyncBN', 'SyncBNOrBN', 'GN', another of mmengine's registry,
    or a class), its arguments, and ``requires_grad`` (default True). None is BN.

    Raises:
        TypeError: Not a dict with a type, or ``requires_grad`` is not a bool.
        KeyError: Unknown type.
        ValueError: Not a norm of NCHW maps.
    """
    norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
    if not isinstance(norm_cfg, dict) or 'type' not in norm_cfg:
        raise TypeError(f"norm_cfg must be a dict with the key 'type', but got {norm_cfg!r}")
    settings = dict(norm_cfg)
    kind, requires_grad = settings.pop('type'), settings.pop('requires_grad', True)
    check_bool('norm_cfg requires_grad', requires_grad)
    layer = kind
    if isinstance(kind, str):
        layer = _NORMS.get(kind) or MODELS.get(kind)
        if layer is None:
            raise KeyError(f'norm_cfg type {kind!r} is not in the model registry')
    is_torchs = getattr(layer, '__module__', '').startswith('torch.nn.')
    if is_torchs and not issubclass(layer, _NCHW_NORMS):
        norms = 'take BN, SyncBN, SyncBNOrBN, GN or IN'
        raise ValueError(f'norm_cfg type {kind!r} is not a norm of (B, C, H, W) maps: {norms}')
    if layer is nn.GroupNorm:
        norm = layer(num_channels=channels, **settings)
    else:
        norm = layer(channels, **settings)
    return norm.requires_grad_(requires_grad)


def is_foldable(norm: nn.Module) -> bool:
    """Whether it norms as a BatchNorm with statistics does, and nothing else happens in it."""
    if not isinstance(norm, BatchNorm) or norm.running_mean is None or has_hooks(norm):
        return False
    return type(norm).forward in (BatchNorm.forward, nn.SyncBatchNorm.forward)


def folded(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight, (out, in / groups, k, k), and bias, (out,), of the convolution that equals
    ``norm(conv(x))``, differentiable; None if the norm uses its input's statistics or does more."""
    if isinstance(norm, nn.Identity):
        return conv.weight, conv.bias
    if norm.training or not is_foldable(norm):
        return None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale * norm.weight if norm.affine else scale
    shift = -norm.running_mean * scale
    shift = shift + norm.bias if norm.affine else shift
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift


def fold_for_good(conv: nn.Conv2d, norm: nn.Module) -> bool:
    """Give ``conv`` the weight and bias of :func:`folded`; returns whether it has ``norm`` now."""
    found = None if isinstance(norm, nn.Identity) else folded(conv, norm)
    if found is None:
        return False
    weight, bias = found
    conv.weight = nn.Parameter(weight.detach())
    conv.bias = None if bias is None else nn.Parameter(bias.detach())
    return True


class Foldable:
    """A module with a form that has less to compute in inference; see :func:`to_deploy`."""

    def fold(self) -> None:
        """Take that form, in place; a second call changes nothing."""
        raise NotImplementedError


class ConvNorm(Foldable, nn.Module):
    """Convolution without bias, norm, and optionally Hardswish, on a channels-last map.

    A BatchNorm in eval mode that does not learn is folded into the weights, in the forward pass or
    for good (:meth:`fold`). ``kernel_size`` is odd, the padding half of it; see :func:`build_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm_cfg: dict | None = None,
        act: bool = True,
    ) -> None:
        super().__init__()
        settings: dict[str, Any] = dict(padding=kernel_size // 2, groups=groups, bias=False)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, **settings)
        self.norm = build_norm(norm_cfg, out_channels)
        self.act = act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, H, W, in_channels) to (B, H', W', out_channels); ``residual``, likewise, is added."""
        if not self._is_plain:
            y = self._finish(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        elif (found := self._folded()) is None:
            y = self._finish(self._convolve(x, self.conv.weight, self.conv.bias))
        else:
            y = _hardswish(self._convolve(x, *found), self.act)
        return y if residual is None else residual + y

    def fold(self) -> None:
        """Fold a BatchNorm into the convolution for good; a second call changes nothing."""
        if not self._is_plain:
            return
        self.norm.eval()
        if fold_for_good(self.conv, self.norm):
            self.norm = nn.Identity()
        self.norm.train(self.training)

    def _folded(self) -> tuple[Tensor, Tensor | None] | None:
        # A norm's gradients, taken through folded weights in 16 bits, would be less exact.
        return None if needs_grad(*self.norm.parameters()) else folded(self.conv, self.norm)

    @property
    def _is_plain(self) -> bool:
        conv = self.conv
        plain = is_plain_layer(nn.Conv2d, conv, bias=None, dilation=(1, 1), padding_mode='zeros')
        return plain and not has_hooks(self.norm)

    @property
    def _is_linear(self) -> bool:
        conv = self.conv
        one_cell = conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0)
        return one_cell and conv.groups == 1

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._is_linear:
            return F.linear(x, weight.flatten(1), bias)
        conv = self.conv
        x = F.conv2d(seen_as_nchw(x), weight, bias, conv.stride, conv.padding, groups=conv.groups)
        return x.permute(0, 2, 3, 1).contiguous()

    def _finish(self, y: Tensor) -> Tensor:
        y = self.norm(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return _hardswish(y, self.act)


def _hardswish(y: Tensor, act: bool) -> Tensor:
    return F.hardswish(y, inplace=not needs_grad(y)) if act else y


def to_deploy(model: nn.Module) -> nn.Module:
    """Fold what can be folded, in place, for inference only; outputs agree to rounding.

    - RepMLP: norm and local perceptron into the partition perceptron's Linear.
    - MPViT, and mmcv's ``ConvModule`` in necks and heads: BatchNorms into convolutions.
    - CycleMLP without reweighting (T, S, B): branches and projection of each mixer into one matrix,
      made again when its weights change other than through ``.data``.

    State dicts change but for CycleMLP's: load the checkpoint first. One saved afterwards fits a
    model that went through this itself. A second call changes nothing.

    Args:
        model (nn.Module): A backbone, or a detector, segmentor or classifier.

    Returns:
        nn.Module: The same object, in eval mode.
    """
    model.eval()
    modules = list(model.modules())
    conv_modules: list[Any] = [m for m in modules if _is_conv_module(m)]
    users = Counter(id(m.conv) for m in conv_modules)
    for module in modules:
        if isinstance(module, Foldable):
            module.fold()
    for module in conv_modules:
        in_order = module.with_norm and tuple(module.order[:2]) == ('conv', 'norm')
        # Other classes do more to their weight, as do hooks (pruning, spectral norm).
        plain = type(module.conv).__name__ == 'Conv2d' and not has_hooks(module.conv)
        is_shared = users[id(module.conv)] > 1  # by modules with a norm of their own each
        if in_order and plain and not is_shared and fold_for_good(module.conv, module.norm):
            setattr(module, module.norm_name, nn.Identity())
            module.with_norm = False
    return model


def _is_conv_module(module: nn.Module) -> bool:
    kind = type(module)  # by name: this package is used without mmcv, too
    return kind.__name__ == 'ConvModule' and kind.__module__.startswith('mmcv.')
