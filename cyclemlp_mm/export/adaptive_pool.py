"""Adaptive average pooling of a map whose size is not known yet; ONNX has no operator for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainAdaptiveAvgPool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products with matrices made from the map's size.

    Args:
        output_size (int | tuple[int, int]): Cells along H and W, none of them None.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.output_size = (output_size,) * 2 if isinstance(output_size, int) else output_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, *output_size)."""
        out_h, out_w = self.output_size
        if out_h == out_w == 1:
            return x.mean(dim=(2, 3), keepdim=True)
        rows = _averaging_matrix(x.shape[2], out_h, x)
        columns = _averaging_matrix(x.shape[3], out_w, x)
        return rows @ x @ columns.mT


def _averaging_matrix(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size): row i averages positions floor(i·size/cells) to ceil((i+1)·size/cells) - 1."""
    position = torch.arange(size, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    # Position p is in cell i where i·size < (p+1)·cells and p·cells < (i+1)·size.
    inside = ((position + 1) * cells > cell * size) & (position * cells < (cell + 1) * size)
    inside = inside.to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
