"""Curves of a training run, from the scalars that mmengine's LocalVisBackend writes."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from cyclemlp_mm.errors import MissingFileError

BLUE, ORANGE = '#0072b2', '#d55e00'  # Okabe and Ito's, told apart by all


def read_scalars(work_dir: 'str | Path') -> 'list[dict]':
    """Scalars of the newest run in a work dir.

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
    return [json.loads(line) for line in files[-1].read_text().splitlines()]


def draw_loss_curve(work_dir: 'str | Path', path: 'str | Path') -> Path:
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
    figure.savefig(path)
    return Path(path)
