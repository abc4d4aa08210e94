"""Layers shared by the backbone families. Tokens and maps are channels-last: (..., C)."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from cyclemlp_mm.ops import chunked_mlp
from cyclemlp_mm.ops.recording import (
    is_plain_layer,
    is_transformed,
    runs_on_cpu,
    standard_operators_only,
)

#: Channels-last maps become NCHW by this many bytes at a time on a CPU, which stay in the cache.
NCHW_PART_BYTES = 256 * 1024
#: Maps this many times smaller than a convolution's weight are convolved in the weight's layout on
#: a CPU: measured in float32 and bfloat16, for images of 64 px to 512 px.
SMALL_MAP_TIMES = 4


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a sample's residual branch with
    probability ``drop_prob``, in [0, 1), and scales kept ones by 1 / (1 - drop_prob)."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = float(drop_prob)

    @property
    def active(self) -> bool:
        """Whether it does anything: in training, with a probability above 0."""
        return self.training and self.drop_prob > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.active:
            return x
        keep = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep)


def is_idle(drop_path: nn.Module) -> bool:
    """Whether a :class:`DropPath` does nothing now; a layer that replaced it has to be called."""
    return is_plain_layer(DropPath, drop_path) and not drop_path.active


def drop_path_rates(last: float, num_blocks: int) -> list[float]:
    """Stochastic depth of each block: linear from 0 to ``last``; raises ValueError unless that is
    in [0, 1)."""
    if not isinstance(last, Real) or isinstance(last, bool) or not 0.0 <= last < 1.0:
        raise ValueError(f'drop_path_rate must be a number in [0, 1), but got {last!r}')
    return [last * i / max(num_blocks - 1, 1) for i in range(num_blocks)]


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last dimension; ``out_channels`` defaults to ``channels``."""

    def __init__(self, channels: int, hidden: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels if out_channels is None else out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to (..., out_channels)."""
        return self.fc2(self.act(self.fc1(x)))


def is_plain_mlp(mlp: Any) -> bool:
    """Whether a module is an :class:`Mlp` that may be computed from its parameters alone."""
    # Its class comes first: a wrapper (FSDP, activation checkpointing) has its module's attributes.
    return (
        is_plain_layer(Mlp, mlp)
        and is_plain_layer(nn.Linear, mlp.fc1, mlp.fc2)
        and is_plain_layer(nn.GELU, mlp.act, approximate='none')
    )


def residual_mlp(x: Tensor, norm: nn.LayerNorm, mlp: Mlp, drop_path: DropPath) -> Tensor:
    """``x + drop_path(mlp(norm(x)))`` of (B, ..., C), on a CPU over chunks of tokens."""
    plain_norm = is_plain_layer(nn.LayerNorm, norm, normalized_shape=x.shape[-1:])
    if not (plain_norm and is_plain_mlp(mlp)):
        return x + drop_path(mlp(norm(x)))
    if is_idle(drop_path):
        return chunked_mlp(x, norm, mlp.fc1, mlp.fc2)
    return x + drop_path(chunked_mlp(x, norm, mlp.fc1, mlp.fc2, residual=False))


def seen_as_nchw(x: Tensor) -> Tensor:
    """A channels-last map, (B, H, W, C), as (B, C, H, W) in torch.channels_last format, without a
    copy; transforms of ``torch.func`` do not support the format: there, it is one."""
    x = x.permute(0, 3, 1, 2)
    return x.contiguous() if is_transformed() else x.contiguous(memory_format=torch.channels_last)


def to_nchw(x: Tensor) -> Tensor:
    """A channels-last map, (B, H, W, C), as a contiguous (B, C, H, W) tensor."""
    nchw = x.permute(0, 3, 1, 2)
    if standard_operators_only(x):
        # contiguous() would tie a recorded graph to sides other than 1.
        return nchw.clone(memory_format=torch.contiguous_format)
    image_bytes = x.element_size() * x[:1].numel()
    if not runs_on_cpu(x) or torch.is_grad_enabled() or image_bytes <= NCHW_PART_BYTES:
        return nchw.contiguous()
    y = torch.empty_like(nchw, memory_format=torch.contiguous_format)
    rows = max(1, NCHW_PART_BYTES * x.shape[1] // image_bytes)
    for target, image in zip(y, nchw):
        for first in range(0, x.shape[1], rows):
            target[:, first : first + rows] = image[:, first : first + rows]
    return y


class ConvDownsample(nn.Module):
    """Strided convolution on a channels-last map; also the stem."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) to (B, H', W', out_channels)."""
        x = x.permute(0, 3, 1, 2).contiguous() if self._is_small(x) else seen_as_nchw(x)
        return self.proj(x).permute(0, 2, 3, 1).contiguous()

    def _is_small(self, x: Tensor) -> bool:
        """Whether to convolve in the weight's layout: a convolution copies its weight into the
        map's at every call."""
        weight = getattr(self.proj, 'weight', None)
        # A quantised convolution's weight is a method; a recorded graph would be tied to the size.
        if not isinstance(weight, Tensor) or standard_operators_only(x, weight):
            return False
        return runs_on_cpu(x) and SMALL_MAP_TIMES * x.numel() <= weight.numel()


class PatchMerging(nn.Module):
    """Swin's downsampling (arXiv 2103.14030, Sec. 3.1): 2x2 neighbours, LN, Linear."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), out_channels); odd sides are padded."""
        # Padded at all sizes alike, for recorded graphs.
        x = nn.functional.pad(x, (0, 0, 0, 1, 0, 1))
        even, odd = slice(0, -1, 2), slice(1, None, 2)
        x = torch.cat([x[:, i, j] for j in (even, odd) for i in (even, odd)], dim=-1)
        return self.reduction(self.norm(x))
