"""Figures of what a model does, and how all our figures look and are saved."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.ops.cycle_fc import cycle_offsets

#: Okabe and Ito's colours, which all can tell apart; yellow is too pale for lines.
LINE_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure, in the format of the suffix (.png, .svg, .pdf, …); returns ``path``.

    Raises a UserError if matplotlib has no such format, or the file cannot be written.
    """
    path = Path(path)
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip('.').lower() not in known:
        raise UserError(f'{path}: a figure is written as {", ".join(sorted(known))}, by its suffix')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}') from error
    return path


def draw_staircase(taps: Sequence[int], path: str | Path, channels: int | None = None) -> Path:
    """Draw a panel per number of taps: for every input channel, the offset at which it is read.

    It is what the published weights match; the paper's Fig. 4 draws the sequence differently.
    ``taps`` are odd, or a UserError is raised; ``channels`` are by default 2 · the largest of them
    + 1.
    """
    if wrong := [k for k in taps if k < 1 or k % 2 == 0]:
        raise UserError(f'a CycleFC has an odd, positive number of taps, but got {wrong}')
    channels = channels or 2 * max(taps) + 1
    rows, reach = np.arange(channels), max(max(taps) // 2, 1)
    size = (0.6 + len(taps) * max(2.2, 0.36 * (2 * reach + 1)), 1.5 + 0.24 * channels)
    figure = Figure(figsize=size, dpi=120, layout='constrained')
    panels = figure.subplots(1, len(taps), squeeze=False, sharey=True)[0]
    ticks = range(-reach, reach + 1)
    for axes, k in zip(panels, taps, strict=True):
        offsets = cycle_offsets(channels, (1, k))[:, 1].numpy()
        axes.set_title(f'k = {k}', fontsize=10)
        axes.axvspan(-0.5, 0.5, color='#eeeeee', zorder=0)  # the cell that is computed
        axes.bar(offsets, 0.86, 0.9, bottom=rows - 0.43, color=LINE_COLOURS[0], zorder=2)
        axes.set(xlim=(-reach - 0.6, reach + 0.6), ylim=(channels - 0.4, -0.6))
        axes.set_xticks(ticks, [f'{s:+d}' if s else '0' for s in ticks], fontsize=8)
        axes.set_yticks(rows)
        axes.tick_params(axis='y', labelsize=8)
        axes.set_xticks(np.arange(-reach - 0.5, reach + 1), minor=True)
        axes.set_yticks(np.arange(-0.5, channels), minor=True)
        axes.grid(which='minor', color='#cccccc', linewidth=0.6, zorder=1)
        axes.tick_params(which='both', length=0)
        axes.set_axisbelow(False)
    panels[0].set_ylabel('input channel')
    figure.supxlabel('offset in cells: along x for kernel (1, k), along y for (k, 1)', fontsize=9)
    return save(figure, path)


def draw_feature_maps(
    image: np.ndarray,
    levels: Sequence[np.ndarray],
    strides: Sequence[int],
    path: str | Path,
    num_channels: int = 4,
) -> Path:
    """Draw a row per level: the mean strength, then the ``num_channels`` that vary most.

    ``image`` is RGB uint8, (H, W, 3), as the model saw it; ``levels`` are float, (C, h, w) each,
    with ``strides`` in pixels per cell.
    """
    row_height = 1.7 * image.shape[0] / image.shape[1] + 0.42
    size = (1.7 * (num_channels + 2), row_height * len(levels))
    figure = Figure(figsize=size, dpi=120, layout='constrained')
    grid = figure.subplots(len(levels), num_channels + 2, squeeze=False)
    for row, level, stride in zip(grid, levels, strides, strict=True):
        height, width = (-(-side // stride) for side in image.shape[:2])
        level = level[:, :height, :width]  # without the padding of the batch
        strongest = np.argsort(-level.var(axis=(1, 2)), kind='stable')[:num_channels]
        panels = [('', image), ('mean |x|', np.abs(level).mean(axis=0))]
        panels += [(f'channel {channel}', level[channel]) for channel in strongest]
        for axes, (title, picture) in zip(row, panels, strict=False):
            axes.imshow(picture, cmap='viridis')
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=8)
        row[0].set_ylabel(f'stride {stride}\n{level.shape[0]} channels', fontsize=8.5)
        for axes in row[len(panels) :]:
            axes.axis('off')
    return save(figure, path)
