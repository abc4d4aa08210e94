"""What the levels of a backbone look like for one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .style import save


def draw_feature_maps(
    image: np.ndarray,
    levels: Sequence[np.ndarray],
    strides: Sequence[int],
    path: str | Path,
    num_channels: int = 4,
) -> Path:
    """Draw a row per level: the mean strength, then the channels that vary most over the image.

    Args:
        image (np.ndarray): RGB uint8, (H, W, 3), as the model saw it.
        levels (Sequence[np.ndarray]): float, (C, h, w) each.
        strides (Sequence[int]): Pixels per cell of each level.
        path (str | Path): The picture to write.
        num_channels (int): Channels per level. Defaults to 4.

    Returns:
        Path: ``path``.
    """
    aspect = image.shape[0] / image.shape[1]
    width = 1.7
    figure = Figure(
        figsize=(width * (num_channels + 2), (width * aspect + 0.42) * len(levels)),
        dpi=120,
        layout='constrained',
    )
    grid = figure.subplots(len(levels), num_channels + 2, squeeze=False)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
    for row, level, stride in zip(grid, levels, strides, strict=True):
        height, long = (-(-side // stride) for side in image.shape[:2])
        level = level[:, :height, :long]  # without the padding of the batch
        row[0].set_ylabel(f'stride {stride}\n{level.shape[0]} channels', fontsize=8.5)
        row[0].imshow(image)
        row[1].imshow(np.abs(level).mean(axis=0), cmap='viridis')
        row[1].set_title('mean |x|', fontsize=8)
        strongest = np.argsort(-level.var(axis=(1, 2)), kind='stable')[:num_channels]
        for axes, channel in zip(row[2:], strongest, strict=False):
            axes.imshow(level[channel], cmap='viridis')
            axes.set_title(f'channel {channel}', fontsize=8)
        for axes in row[2 + len(strongest) :]:
            axes.axis('off')
    return save(figure, path)
