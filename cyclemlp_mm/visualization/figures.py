"""Figures of what a model does and of its tests, and how all our figures look and are saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cyclemlp_mm.datasets.corrupt import CORRUPTIONS
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.ops.cycle_fc import cycle_offsets

#: Okabe and Ito's colours, which all can tell apart; yellow is too pale for lines.
LINE_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
#: Above this number of classes, cells of a confusion matrix are too small for numbers.
MOST_NUMBERS = 25


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


def draw_staircase(taps: Sequence[int], path: str | Path) -> Path:
    """Draw a panel per odd number of taps: the offset at which each input channel is read.

    It is what the published weights match; the paper's Fig. 4 draws the sequence differently.
    """
    if wrong := [k for k in taps if k < 1 or k % 2 == 0]:
        raise UserError(f'a CycleFC has an odd, positive number of taps, but got {wrong}')
    channels = 2 * max(taps) + 1
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


def plain(axes: Axes) -> None:
    """A light grid, and no frame above and on the right."""
    axes.grid(color='#e6e6e6', linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)


def draw_confusion_matrix(
    matrix: np.ndarray, names: Sequence[str], unit: str, path: str | Path
) -> Path:
    """Draw counts, int (N, N): a row per true class, a column per predicted one; returns ``path``.

    With (N + 1, N + 1), the last row is what was found on the background, the last column what was
    missed. ``unit`` says what was counted, in the plural.
    """
    rows, columns = list(names), list(names)
    if len(matrix) > len(names):
        rows, columns = [*names, 'background'], [*names, 'missed']
    number = len(rows)
    per_cent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(3.6, min(0.45 * number, 20)) + 1.6
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(per_cent, cmap='Blues', vmin=0, vmax=100)
    size = 9 if number <= MOST_NUMBERS else 5
    axes.set_xticks(range(number), map(_shorten, columns), rotation=45, ha='right', fontsize=size)
    totals = [f'{_shorten(name)} ({n})' for name, n in zip(rows, matrix.sum(1), strict=True)]
    axes.set_yticks(range(number), totals, fontsize=size)
    axes.set(xlabel='predicted', ylabel=f'true ({unit})', title='per cent of each row')
    for row, column in np.argwhere(matrix) if number <= MOST_NUMBERS else ():
        value = per_cent[row, column]
        colour = 'white' if value > 55 else '#333333'
        text = f'{value:.0f}' if value >= 0.5 else '<1'
        axes.text(column, row, text, ha='center', va='center', color=colour, fontsize=8)
    figure.colorbar(image, shrink=0.8)
    return save(figure, path)


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else f'{name[:23]}…'


def draw_sizes(points: Sequence[tuple[int, float]], own_size: int, path: str | Path) -> Path:
    """Draw top-1 in % over image sizes, with the config's own size marked; returns ``path``."""
    figure = Figure(figsize=(5.2, 3.6), dpi=120, layout='constrained')
    axes = figure.subplots()
    axes.axvline(own_size, color='#999999', linestyle='--', linewidth=1)
    axes.plot(*zip(*points, strict=True), marker='o', markersize=4, color=LINE_COLOURS[0])
    label = f"{own_size}: the config's own"
    axes.text(own_size, 0.02, f' {label}', transform=axes.get_xaxis_transform(), fontsize=8)
    axes.set(xlabel='image size in pixels', ylabel='top-1 in %')
    axes.set_xticks([size for size, _ in points])
    plain(axes)
    return save(figure, path)


def draw_corruptions(panels: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path) -> Path:
    """Draw metrics over severities, a panel for each group of corruptions; returns ``path``.

    ``panels`` has by metric, and then by corruption, six values in %: at severities 0 (clean) to 5.
    """
    names = list(next(iter(panels.values())))
    known = {name for group in CORRUPTIONS.values() for name in group}
    groups = {**CORRUPTIONS, 'other': tuple(name for name in names if name not in known)}
    groups = {k: [n for n in v if n in names] for k, v in groups.items()}
    groups = {title: members for title, members in groups.items() if members}
    size = (max(2.6 * len(groups), 4), 3.4 * len(panels))
    figure = Figure(figsize=size, dpi=120, layout='constrained')
    grid = figure.subplots(len(panels), len(groups), squeeze=False, sharex=True, sharey='row')
    for row, (metric, values) in zip(grid, panels.items(), strict=True):
        for axes, (title, members) in zip(row, groups.items(), strict=True):
            for i, name in enumerate(members):
                look = dict(color=LINE_COLOURS[i % 6], linestyle=('-', '--', '-.')[i // 6 % 3])
                label = name.replace('_', ' ')
                axes.plot(range(6), values[name], marker='o', markersize=3, label=label, **look)
            axes.set_title(title, fontsize=10)
            axes.legend(frameon=False, fontsize=7.5)
            axes.set(xlabel='severity (0: clean)', xticks=range(6))
            plain(axes)
        row[0].set(ylabel=f'{metric} in %', ylim=(0, 1.04 * max(map(max, values.values())) or 1))
    return save(figure, path)
