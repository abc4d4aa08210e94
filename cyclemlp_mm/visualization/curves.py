"""Curves of a training run, from the scalars that mmengine's LocalVisBackend writes."""

import json
import os
import warnings
from collections.abc import Sequence
from itertools import cycle, pairwise, product
from pathlib import Path

from matplotlib.figure import Figure

from cyclemlp_mm.errors import MissingFileError, UserError

from .figures import LINE_COLOURS, plain, save

#: What an evaluation is judged by, the first that a run has: box AP, mask AP, mIoU, accuracy.
HEADLINES = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1')


def read_scalars(work_dir: str | Path) -> list[dict]:
    """Read the scalars of the run in a work dir, of all its starts, as one dict per logged line.

    Training lines hold 'loss', evaluation lines metrics. A resumed training replaces what earlier
    starts logged after its checkpoint; one that was started again replaces all. Raises a
    MissingFileError where no run was logged.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))  # names begin with the time
    if not files:
        raise MissingFileError(f'{work_dir} holds no training run (*/vis_data/scalars.json)')
    joined = []
    for lines in map(_read_lines, files):
        steps = [line['step'] for line in lines if 'loss' in line]
        if steps:
            # A start logs the first interval of iterations; one that was resumed does not.
            is_new = len(steps) > 1 and steps[0] <= steps[1] - steps[0]
            first = 0 if is_new else steps[0]
            later = (i for i, old in enumerate(joined) if 'loss' in old and old['step'] >= first)
            joined = joined[: next(later, len(joined))]
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
    if damaged and damaged != [len(texts)]:  # the last one may be half written
        what = f'{file}: lines {damaged[:5]} are not JSON and are left out'
        warnings.warn(f'{what} ({len(damaged)} of {len(texts)})', stacklevel=3)
    return lines


def draw_curves(work_dirs: Sequence[str | Path], path: str | Path) -> Path:
    """Draw loss, learning rate and metric of runs over their iterations; returns ``path``.

    Raises a UserError if a work dir holds no run, or one without a loss.
    """
    runs = {Path(folder).resolve(): read_scalars(folder) for folder in work_dirs}
    shared = os.path.commonpath([folder.parent for folder in runs])
    figure = Figure(figsize=(10.5, 3.6), dpi=120, layout='constrained')
    panels = figure.subplots(1, 3, sharex=True)
    metrics = set()
    looks = cycle(product(('-', '--', '-.', ':'), LINE_COLOURS))  # all colours of a style first
    for (folder, lines), (style, colour) in zip(runs.items(), looks, strict=False):
        train = [line for line in lines if 'loss' in line]
        if not train:
            raise UserError(f'{folder}: this run has logged no loss yet')
        look, steps = dict(color=colour, linestyle=style), [line['step'] for line in train]
        name, losses = os.path.relpath(folder, shared), [line['loss'] for line in train]
        panels[0].plot(steps, losses, label=name, **look)
        panels[1].plot(steps, [line.get('lr', float('nan')) for line in train], **look)
        metric, points = evaluations(lines)
        if points:
            metrics.add(metric)
            panels[2].plot(*zip(*points, strict=True), marker='o', markersize=4, **look)
    titles = ('loss', 'learning rate', ' / '.join(sorted(metrics)) or 'no evaluation yet')
    panels[1].ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel('iteration')
        axes.set_ylim(bottom=0)
        plain(axes)
    figure.legend(loc='outside lower center', ncols=min(3, len(runs)), frameon=False, fontsize=9)
    return save(figure, path)


def evaluations(
    lines: Sequence[dict], name: str | None = None
) -> tuple[str, list[tuple[int, float]]]:
    """A run's headline metric, or '', and (iteration, value in 0..1) of each evaluation.

    mmseg and mmpretrain log per cent. An evaluation's own ``step`` may be an epoch: its iterations
    are those between the first logged ones of two epochs.
    """
    name = name or next((n for n in HEADLINES if any(n in line for line in lines)), '')
    points, step, unit = [], 0, 1 if name.startswith('coco/') else 100
    firsts: dict[int, int] = {}  # by epoch
    for line in lines:
        if 'loss' in line and 'epoch' in line:
            firsts.setdefault(line['epoch'], line['step'])
    epoch = min((b - a for a, b in pairwise(firsts.values()) if b > a), default=0)
    for line in lines:
        if 'loss' in line:
            step = line['step']
        elif name in line:
            own = line.get('step', 0)
            points.append((own if own >= step else max(step, own * epoch), line[name] / unit))
    return name, points
