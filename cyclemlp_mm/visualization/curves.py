"""Curves of a training run, from the scalars that mmengine's LocalVisBackend writes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cyclemlp_mm.errors import MissingFileError, UserError

from .style import BLUE, LINE_COLOURS, LINE_STYLES, ORANGE, save

#: What an evaluation is judged by, the first that a run has: box AP, mask AP, mIoU, accuracy.
HEADLINES = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1')


def read_scalars(work_dir: str | Path) -> list[dict]:
    """Scalars of the run in a work dir: of all its starts, joined.

    Each start writes a folder of its own. A training that was resumed goes on from a checkpoint:
    what earlier starts logged from there on is left out. One that began again replaces all.

    Args:
        work_dir (str | Path): What was given to ``tools/train.py --work-dir``.

    Returns:
        list[dict]: One dict per logged line; training lines hold 'loss', evaluation lines metrics.

    Raises:
        MissingFileError: No run was logged there.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))  # names begin with the time
    if not files:
        raise MissingFileError(f'{work_dir} holds no training run (*/vis_data/scalars.json)')
    joined = []
    for file in files:
        lines = _read_lines(file)
        steps = [line['step'] for line in lines if 'loss' in line]
        if steps:
            joined = joined[: 0 if _began_anew(steps) else _num_before(joined, steps[0])]
        joined += lines
    return joined


def _read_lines(file: Path) -> list[dict]:
    texts = file.read_text(encoding='utf-8', errors='replace').splitlines()
    lines, damaged = [], []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            damaged.append(number)
    # The last one is cut where the training was killed, or is writing it now.
    if damaged and damaged != [len(texts)]:
        warnings.warn(
            f'{file}: lines {damaged[:5]} are no JSON, as after a full disk, and are left out '
            f'({len(damaged)} of {len(texts)})',
            stacklevel=2,
        )
    return lines


def _began_anew(steps: list[int]) -> bool:
    """Whether a start logged the first interval of iterations; one that was resumed did not."""
    return len(steps) > 1 and steps[0] <= steps[1] - steps[0]


def _num_before(lines: list[dict], step: int) -> int:
    """How many lines there are before the first one of a training at ``step`` or later."""
    for i, line in enumerate(lines):
        if 'loss' in line and line['step'] >= step:
            return i
    return len(lines)


def draw_loss_curve(work_dir: str | Path, path: str | Path) -> Path:
    """Draw loss and learning rate over iterations.

    Args:
        work_dir (str | Path): See :func:`read_scalars`.
        path (str | Path): The PNG to write.

    Returns:
        Path: ``path``.
    """
    lines = [line for line in read_scalars(work_dir) if 'loss' in line]
    steps = [line['step'] for line in lines]
    figure = Figure(figsize=(7, 4), dpi=120, layout='constrained')
    axes = figure.subplots()
    axes.plot(steps, [line['loss'] for line in lines], color=BLUE, label='loss')
    for part in ('loss_cls', 'loss_bbox'):
        if all(part in line for line in lines):
            style = '--' if part == 'loss_cls' else ':'
            axes.plot(steps, [line[part] for line in lines], style, color=BLUE, label=part)
    axes.set(xlabel='iteration', ylabel='loss', ylim=(0, None))
    rate = axes.twinx()
    rate.plot(steps, [line['lr'] for line in lines], color=ORANGE, alpha=0.7)
    rate.set_ylabel('learning rate', color=ORANGE)
    rate.set_ylim(0, None)
    rate.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    axes.legend(frameon=False)
    axes.spines['top'].set_visible(False)
    rate.spines['top'].set_visible(False)
    return save(figure, path)


def draw_curves(work_dirs: Sequence[str | Path], path: str | Path) -> Path:
    """Draw loss, learning rate and metric of several runs over their iterations.

    Args:
        work_dirs (Sequence[str | Path]): See :func:`read_scalars`.
        path (str | Path): The picture to write.

    Returns:
        Path: ``path``.

    Raises:
        MissingFileError: A work dir holds no run.
        UserError: A run has logged no loss yet.
    """
    runs = {str(folder): read_scalars(folder) for folder in work_dirs}
    names = _short_names(list(runs))
    figure = Figure(figsize=(10.5, 3.6), dpi=120, layout='constrained')
    panels = figure.subplots(1, 3, sharex=True)
    metrics = set()
    for i, (folder, lines) in enumerate(runs.items()):
        look = dict(
            color=LINE_COLOURS[i % len(LINE_COLOURS)],
            linestyle=LINE_STYLES[i // len(LINE_COLOURS) % len(LINE_STYLES)],
        )
        train = [line for line in lines if 'loss' in line]
        if not train:
            raise UserError(f'{folder}: this run has logged no loss yet')
        steps = [line['step'] for line in train]
        panels[0].plot(steps, [line['loss'] for line in train], label=names[i], **look)
        panels[1].plot(steps, [line.get('lr', float('nan')) for line in train], **look)
        metric, points = evaluations(lines)
        if points:
            metrics.add(metric)
            panels[2].plot(*zip(*points, strict=True), marker='o', markersize=4, **look)
    panels[2].set_title(' / '.join(sorted(metrics)) or 'no evaluation yet', fontsize=10)
    for axes, title in zip(panels, ('loss', 'learning rate'), strict=False):
        axes.set_title(title, fontsize=10)
    panels[1].ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    for axes in panels:
        axes.set_xlabel('iteration')
        axes.set_ylim(bottom=0)
        axes.grid(color='#e6e6e6', linewidth=0.6)
        axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=min(3, len(runs)), frameon=False, fontsize=9)
    return save(figure, path)


def evaluations(lines: Sequence[dict]) -> tuple[str, list[tuple[int, float]]]:
    """A run's evaluations by their headline metric.

    Args:
        lines (Sequence[dict]): See :func:`read_scalars`.

    Returns:
        tuple: The metric's name, '' where there is none, and (iteration, value) of each evaluation.
        An evaluation's own ``step`` is an epoch in epoch-based runs; that of the training line
        before it is an iteration in all.
    """
    name = next((n for n in HEADLINES if any(n in line for line in lines)), '')
    points, step = [], 0
    for line in lines:
        if 'loss' in line:
            step = line['step']
        elif name in line:
            points.append((step, line[name]))
    return name, points


def _short_names(folders: list[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for number in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(p[-number:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return folders
