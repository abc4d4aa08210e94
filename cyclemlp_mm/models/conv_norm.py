"""Convolution, norm and activation on channels-last maps, one pass each where that is possible."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclemlp_mm.ops.autocast import compute_dtype
from cyclemlp_mm.ops.cpu_linear import add_linear
from cyclemlp_mm.ops.recording import standard_operators_only
from cyclemlp_mm.ops.untouched import listened_to, untouched

from .foldable import Foldable
from .layers import seen_as_nchw
from .norms import build_norm, folded


class ConvNorm(Foldable, nn.Module):
    """Convolution without bias, norm, and optionally Hardswish, on a channels-last map.

    Where the norm's statistics are fixed (in eval mode, or frozen), a BatchNorm is folded into the
    convolution's weights, in the forward pass or for good (:meth:`fold`). A 1x1 convolution is a
    Linear.

    Args:
        in_channels (int): Input channels.
        out_channels (int): Output channels.
        kernel_size (int): Kernel side, odd. Defaults to 1.
        stride (int): Stride. Defaults to 1.
        groups (int): Groups of the convolution. Defaults to 1.
        norm_cfg (dict): See :func:`~cyclemlp_mm.models.norms.build_norm`.
        act (bool): Whether Hardswish follows. Defaults to True.
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
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.norm = build_norm(norm_cfg, out_channels)
        self.act = bool(act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, H, W, in_channels) to (B, H', W', out_channels).

        Args:
            x (Tensor): The map.
            residual (Tensor, optional): Of the output's shape, added last.
        """
        if not self._untouched:
            y = self._finish(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
            return y if residual is None else residual + y
        weight, bias = folded(self.conv, self.norm)
        if weight is None:
            y = self._finish(self._convolve(x, self.conv.weight, self.conv.bias))
            return y if residual is None else residual + y
        if self._is_linear and not self.act and _plain(x, weight, residual):
            return add_linear(x, weight.flatten(1), bias, residual)
        y = _hardswish(self._convolve(x, weight, bias), self.act)
        return y if residual is None else residual + y

    def fold(self) -> None:
        """Fold the norm into the convolution for good; a second call, or another norm than
        BatchNorm, changes nothing."""
        if isinstance(self.norm, nn.Identity) or not self._untouched:
            return
        was_training, _ = self.training, self.norm.eval()
        weight, bias = folded(self.conv, self.norm)
        self.norm.train(was_training)
        if weight is not None:
            self.conv.weight = nn.Parameter(weight.detach())
            self.conv.bias = nn.Parameter(bias.detach())
            self.norm = nn.Identity()

    @property
    def _untouched(self) -> bool:
        settings = dict(dilation=(1, 1), padding_mode='zeros')
        return untouched(nn.Conv2d, self.conv, bias=None, **settings) and not listened_to(self.norm)

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


class Aggregate(ConvNorm):
    """A 1x1 :class:`ConvNorm` over several maps side by side, which are never put together.

    Args:
        in_channels (Sequence[int]): Channels of each map.
        out_channels (int): Output channels.
        norm_cfg (dict): See :func:`~cyclemlp_mm.models.norms.build_norm`.
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, norm_cfg: dict | None = None
    ) -> None:
        super().__init__(sum(in_channels), out_channels, norm_cfg=norm_cfg)
        self.in_channels = list(in_channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, H, W, in_channels[i]) to (B, H, W, out_channels)."""
        if not (self._untouched and self._is_linear):
            return super().forward(torch.cat(maps, dim=-1))
        weight, bias = folded(self.conv, self.norm)
        fixed = weight is not None
        if not fixed:
            weight, bias = self.conv.weight, self.conv.bias
        first, *weights = weight.flatten(1).split(self.in_channels, dim=1)
        y = F.linear(maps[0], first, bias)
        for x, part in zip(maps[1:], weights, strict=True):
            y = _add_product(y, x, part)
        return _hardswish(y, self.act) if fixed else self._finish(y)


def _add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``y + x weightᵀ``, into y's memory where no gradient is needed."""
    if not _plain(x, y, weight):
        return y + F.linear(x, weight)
    tokens, total = x.flatten(0, -2), y.flatten(0, -2)
    if _needs_grad(tokens, total, weight):
        return torch.addmm(total, tokens, weight.mT).view(y.shape)
    torch.addmm(total, tokens, weight.mT, out=total)
    return y


def _hardswish(y: Tensor, act: bool) -> Tensor:
    if not act:
        return y
    return F.hardswish(y, inplace=not _needs_grad(y))


def _plain(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all are there and of the dtype that products are made in, autocast or not.

    Never where only standard operators may be used.
    """
    dtype = compute_dtype(x)
    same = all(t is not None and t.dtype == dtype for t in (x, *others))
    return same and not standard_operators_only(x, *others)


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
