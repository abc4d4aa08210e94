"""Plots of a series of tests: accuracy by image size, and metrics by corruption and severity."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cyclemlp_mm.datasets.corrupt import CORRUPTIONS

from .figures import LINE_COLOURS, save


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
    _plain(axes)
    return save(figure, path)


def draw_corruptions(panels: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path) -> Path:
    """Draw metrics over severities, a panel for each group of corruptions; returns ``path``.

    Args:
        panels (Mapping): By metric, a row of panels each: by corruption, six values in %, at
            severities 0 (clean) to 5.
        path (str | Path): Where to write the plot.
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
            _plain(axes)
        row[0].set(ylabel=f'{metric} in %', ylim=(0, 1.04 * max(map(max, values.values())) or 1))
    return save(figure, path)


def _plain(axes) -> None:
    axes.grid(color='#e6e6e6', linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
