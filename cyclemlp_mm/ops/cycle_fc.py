"""CycleFC, the operator of CycleMLP (arXiv 2107.10224, Sec. 3.2): a shift, then a Linear.

A CycleFC is a 1x1 projection whose input channel ``i`` is read at a spatial offset that cycles with
``i``. The published code runs it through ``deform_conv2d``; as every offset is an integer, shifting
the channels first gives the same numbers. The offsets are those of the published *code* and
weights; the paper's Fig. 4 draws the sequence differently. Maps are channels-last, (B, H, W, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recording import is_compiled, standard_operators_only


def check_kernel_size(kernel_size: tuple[int, int]) -> tuple[int, int]:
    """Return ``kernel_size``, (1, k) or (k, 1) with k odd, as a pair, or raise ValueError."""
    pair = tuple(kernel_size) if isinstance(kernel_size, (tuple, list)) else ()
    are_odd = all(type(k) is int and k > 0 and k % 2 for k in pair)
    if len(pair) != 2 or not are_odd or 1 not in pair:
        expected = '(1, k) or (k, 1) with an odd int k'
        raise ValueError(f'kernel_size must be {expected}, but got {kernel_size!r}')
    return pair


def cycle_offsets(channels: int, kernel_size: tuple[int, int]) -> Tensor:
    """Spatial offset at which each input channel is read, as rows (dy, dx) of int64, (channels, 2).

    With k taps, channel ``i`` reads ``(i + k // 2) % k - k // 2`` steps along the kernel's axis:
    0, +1, -1, 0, +1, -1, ... for k = 3. (1, k) shifts in x, (k, 1) in y.
    """
    index = torch.arange(channels)
    steps = [(index + k // 2) % k - k // 2 for k in check_kernel_size(kernel_size)]
    return torch.stack(steps, dim=1)


def cycle_shift(x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Read every channel of a map, (B, H, W, C), at its offset; zero outside the map.

    ``kernel_size`` is (1, k) or (k, 1); ``out[b, y, x, i] = x[b, y + dy_i, x + dx_i, i]``.
    """
    taps, axis, offsets = _taps(kernel_size)
    if _by_groups(x):
        channels = x.shape[-1]
        groups = shifted_groups(F.pad(x, (0, -channels % taps)), kernel_size)
        return torch.stack(groups, dim=-1).flatten(-2)[..., :channels]
    size = x.shape[axis]
    out = x.clone()  # channels of offset 0 are done
    for residue, offset in enumerate(offsets[1:], 1):
        outside = min(abs(offset), size)
        inside = size - outside
        target, source = out[..., residue::taps], x[..., residue::taps]
        first, last = (0, outside) if offset > 0 else (outside, 0)
        target.narrow(axis, first, inside).copy_(source.narrow(axis, last, inside))
        target.narrow(axis, inside if offset > 0 else 0, outside).zero_()
    return out


def shifted_groups(x: Tensor, kernel_size: tuple[int, int]) -> list[Tensor]:
    """The channels of :func:`cycle_shift` by offset: channels 0, k, 2k, …, then 1, k + 1, …

    Nothing is written in place, which ONNX's exporter would lose, and no size is read, so that a
    recorded graph holds at every size.
    """
    taps, axis, offsets = _taps(kernel_size)
    groups = [x[..., 0::taps]]
    for residue, offset in enumerate(offsets[1:], 1):
        after, before = max(offset, 0), max(-offset, 0)
        pad = (0, 0, before, after) if axis == 2 else (0, 0, 0, 0, before, after)
        inside = slice(after, None if offset > 0 else offset)
        group = F.pad(x[..., residue::taps], pad)
        groups.append(group[:, :, inside] if axis == 2 else group[:, inside])
    return groups


def _by_groups(*tensors: Tensor) -> bool:
    """Whether nothing may be written in place; torch.compile replaces that itself, and cannot train
    on padded groups at dynamic sizes."""
    return standard_operators_only(*tensors) and not is_compiled()


def _taps(kernel_size: tuple[int, int]) -> tuple[int, int, list[int]]:
    """The number of taps, the axis of a (B, H, W, C) map, and the offset of each residue."""
    kernel_h, kernel_w = check_kernel_size(kernel_size)
    taps, axis = (kernel_w, 2) if kernel_h == 1 else (kernel_h, 1)
    return taps, axis, [(i + taps // 2) % taps - taps // 2 for i in range(taps)]


def cycle_fc(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: tuple[int, int]
) -> Tensor:
    """Functional form of :class:`CycleFC`: (B, H, W, C_in) to (B, H, W, C_out), with a weight
    (C_out, C_in) and a bias (C_out,) or None; ``kernel_size`` is (1, k) or (k, 1)."""
    if _by_groups(x, weight):
        # The weight's columns are put in the order of the groups: no channel moves by itself.
        taps = max(kernel_size)
        x = torch.cat(shifted_groups(x, kernel_size), dim=-1)
        weight = torch.cat([weight[:, residue::taps] for residue in range(taps)], dim=1)
        return F.linear(x, weight, bias)
    return F.linear(cycle_shift(x, kernel_size), weight, bias)


class CycleFC(nn.Module):
    """Cycle fully-connected layer: a Linear whose input channels are read at cycling offsets
    (CycleMLP, arXiv 2107.10224, Eq. 2).

    Args:
        in_channels (int): Input channels.
        out_channels (int): Output channels.
        kernel_size (tuple[int, int]): Pseudo-kernel, (1, k) or (k, 1), k odd. It sets where the
            channels are read, not the number of weights. For k other than 3, the state dict has
            these offsets as ``taps``, (k,), so that weights of another k do not fit.
        bias (bool): Adds a learnable bias. Defaults to True.

    Shapes: input (B, H, W, in_channels), output (B, H, W, out_channels), weight (out_channels,
    in_channels), bias (out_channels,).

    Raises:
        ValueError: ``kernel_size`` is not such a pair, e.g. (3, 3).
    """

    bias: nn.Parameter
    taps: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], bias: bool = True
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = check_kernel_size(kernel_size)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.register_parameter('bias', nn.Parameter(torch.empty(out_channels)) if bias else None)
        if max(self.kernel_size) != 3:
            self.register_buffer('taps', torch.empty(max(self.kernel_size), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal weights (std 0.02), zero bias, as in the published code."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if 'taps' in self._buffers:
            self.taps.copy_(torch.tensor(_taps(self.kernel_size)[2]))

    def forward(self, x: Tensor) -> Tensor:
        """Project a channels-last map, (B, H, W, C_in) to (B, H, W, C_out)."""
        if x.dim() != 4 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f'CycleFC expects a channels-last map (B, H, W, {self.in_channels}), but got '
                f'{tuple(x.shape)}. For an NCHW map, call x.permute(0, 2, 3, 1) first'
            )
        return cycle_fc(x, self.weight, self.bias, self.kernel_size)
