"""Sums over space of a map and of its two shifted copies, without making the copies.

The reweighting needs the mean of h + w + c, and a mean commutes with a Linear: the means of the
shifted maps will do. A channel read one column to the right never reads the first column, one read
to the left never the last: its sum is the map's less a border column (or row).
"""

from __future__ import annotations

import torch
from torch import Tensor


def sum_over_space(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.sum((1, 2), dtype)``, where that is slow by way of sums over columns.

    To add up bfloat16 in another dtype, or to average it, PyTorch first makes a copy of all of it
    on a CPU. A column's sum is made in float32 inside and rounded once; it cannot overflow.

    Args:
        x (Tensor): (B, H, W, C).
        dtype (torch.dtype): Of the sums.

    Returns:
        Tensor: (B, C).
    """
    if x.dtype == torch.bfloat16 and x.device.type == 'cpu':
        return x.sum(dim=1).sum(dim=1, dtype=dtype)
    return x.sum(dim=(1, 2), dtype=dtype)


def _sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    total = sum_over_space(x, dtype)
    sums = total[:, None].repeat(1, 3, 1)
    sums[:, 1, 1::3] -= x[:, :, 0, 1::3].sum(dim=1, dtype=dtype)
    sums[:, 1, 2::3] -= x[:, :, -1, 2::3].sum(dim=1, dtype=dtype)
    sums[:, 2, 1::3] -= x[:, 0, :, 1::3].sum(dim=1, dtype=dtype)
    sums[:, 2, 2::3] -= x[:, -1, :, 2::3].sum(dim=1, dtype=dtype)
    return sums


class _MapSums(torch.autograd.Function):
    """Hands the map on beside its sums, so that backward adds both gradients in one pass.

    Its backward is made of differentiable operators.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return x.view_as(x), _sums(x, dtype)

    @staticmethod
    def backward(ctx, grad_x: Tensor, grad_sums: Tensor) -> tuple[Tensor, None]:
        grad = grad_sums.to(grad_x.dtype)
        total = grad.sum(dim=1)
        grad_x = grad_x + total[:, None, None, :]
        grad_x[:, :, 0, 1::3] -= grad[:, 1, None, 1::3]
        grad_x[:, :, -1, 2::3] -= grad[:, 1, None, 2::3]
        grad_x[:, 0, :, 1::3] -= grad[:, 2, None, 1::3]
        grad_x[:, -1, :, 2::3] -= grad[:, 2, None, 2::3]
        return grad_x, None


def map_means(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Means over space; use the returned map from here on.

    Args:
        x (Tensor): (B, H, W, C).
        dtype (torch.dtype): Of the means.

    Returns:
        tuple[Tensor, Tensor]: ``x`` itself, and (B, 3, C): the means of x, of x shifted along W and
        of x shifted along H.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        x, sums = _MapSums.apply(x, dtype)
    else:
        sums = _sums(x, dtype)
    return x, sums / (x.shape[1] * x.shape[2])
