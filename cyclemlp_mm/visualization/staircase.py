"""Where a CycleFC reads its input: the staircase over the channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cyclemlp_mm.ops.cycle_fc import cycle_offsets

from .style import BLUE, save


def draw_staircase(taps: Sequence[int], path: str | Path, channels: int | None = None) -> Path:
    """Draw a panel per number of taps: for every input channel, the offset at which it is read.

    It is what the code does, and what the published weights match; the paper's Fig. 4 draws the
    sequence differently. The offsets come from :func:`cyclemlp_mm.ops.cycle_fc.cycle_offsets`.

    Args:
        taps (Sequence[int]): k of each panel, odd.
        path (str | Path): The picture to write.
        channels (int, optional): Input channels shown. Defaults to two rounds of the largest k and
            one more.

    Returns:
        Path: ``path``.

    Raises:
        ValueError: A k is even or below 1.
    """
    channels = channels or 2 * max(taps) + 1
    offsets = [cycle_offsets(channels, (1, k))[:, 1].numpy() for k in taps]
    reach = max(max(k // 2 for k in taps), 1)
    figure = Figure(
        figsize=(0.6 + len(taps) * max(2.2, 0.36 * (2 * reach + 1)), 1.5 + 0.24 * channels),
        dpi=120,
        layout='constrained',
    )
    panels = figure.subplots(1, len(taps), squeeze=False, sharey=True)[0]
    for axes, k, steps in zip(panels, taps, offsets, strict=True):
        _draw_panel(axes, k, steps, reach)
    panels[0].set_ylabel('input channel')
    figure.supxlabel('offset in cells: along x for kernel (1, k), along y for (k, 1)', fontsize=9)
    return save(figure, path)


def _draw_panel(axes: Axes, k: int, steps: np.ndarray, reach: int) -> None:
    axes.set_title(f'k = {k}', fontsize=10)
    axes.axvspan(-0.5, 0.5, color='#eeeeee', zorder=0)  # the cell that is computed
    axes.bar(
        steps, height=0.86, bottom=np.arange(len(steps)) - 0.43, width=0.9, color=BLUE, zorder=2
    )
    axes.set(xlim=(-reach - 0.6, reach + 0.6), ylim=(len(steps) - 0.4, -0.6))
    axes.set_xticks(
        range(-reach, reach + 1),
        [f'{s:+d}' if s else '0' for s in range(-reach, reach + 1)],
        fontsize=8,
    )
    axes.set_yticks(range(len(steps)))
    axes.tick_params(axis='y', labelsize=8)
    axes.set_xticks(np.arange(-reach - 0.5, reach + 1), minor=True)
    axes.set_yticks(np.arange(-0.5, len(steps)), minor=True)
    axes.grid(which='minor', color='#cccccc', linewidth=0.6, zorder=1)
    axes.tick_params(which='both', length=0)
    axes.set_axisbelow(False)
