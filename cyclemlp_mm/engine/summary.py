"""What a training ends with: the best figure, where the weights are, and what to do with them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop, Runner

from .config_files import tools_dir
from .hooks.checkpoint import NUM_FIGURES
from .hooks.stop import StopOnNonFiniteLoss


def run_summary(runner: Runner) -> str:
    """Describe a finished training.

    Args:
        runner (Runner): After ``train()``.

    Returns:
        str: A few lines: best metrics with their checkpoints, the last checkpoint, commands that
        test it, predict with it and show the curves.
    """
    info = runner.message_hub.runtime_info
    best = list(_best(runner))
    lines = [f'best {metric}: {score:.4g}, in {_relative(file)}' for metric, score, file in best]
    if not best:
        lines = [_why_no_best(info.get(NUM_FIGURES))]
    if any(isinstance(h, StopOnNonFiniteLoss) and not h.num_iters for h in runner.hooks):
        is_iters = isinstance(runner.train_loop, IterBasedTrainLoop)
        key = 'max_iters' if is_iters else 'max_epochs'
        lines.insert(
            0,
            'nothing was left to train: the checkpoint is at '
            f'{runner.iter if is_iters else runner.epoch}, and train_cfg.{key} is '
            f'{getattr(runner, key)}. To train longer, resume with a larger --cfg-options '
            f'train_cfg.{key}',
        )
    if info.get('last_ckpt'):
        lines.append(f'last checkpoint: {_relative(info["last_ckpt"])}')
    checkpoint = best[0][2] if best else info.get('last_ckpt')
    if not checkpoint:
        return '\n'.join([*lines, 'no checkpoint was saved'])
    config = Path(runner.work_dir) / Path(runner.cfg.filename or 'config.py').name
    files = [_relative(config), _relative(checkpoint)]
    lines.append(f'test it:   {_command("test.py", *files)}')
    if runner.cfg.get('default_scope') in ('mmdet', 'mmseg'):
        lines.append(f'use it:    {_command("infer.py", *files)} IMAGES')
    backends = (runner.cfg.get('visualizer') or {}).get('vis_backends') or ()
    if 'TensorboardVisBackend' in [backend['type'] for backend in backends]:
        folder = shlex.quote(_relative(runner.work_dir))
        lines.append(f'curves:    tensorboard --logdir {folder}')
    return '\n'.join(lines)


def _best(runner: Runner) -> Iterator[tuple[str, float, str]]:
    """Metric, its best value and the checkpoint, of every metric that ``save_best`` watches."""
    info = runner.message_hub.runtime_info
    for hook in runner.hooks:
        metrics = getattr(hook, 'key_indicators', ()) if isinstance(hook, CheckpointHook) else ()
        for metric in metrics:
            end = '' if len(metrics) == 1 else f'_{metric}'
            if info.get(f'best_ckpt{end}') is not None:
                yield metric, float(info[f'best_score{end}']), info[f'best_ckpt{end}']


def _why_no_best(figures: int | None) -> str:
    if figures is None:
        return 'no metric: no evaluation ran'
    if figures == 0:  # mmdet's, without a single box
        return (
            'no metric: the evaluation ran, and the model found nothing that could be scored (a '
            'detector: no box); it may need a longer training'
        )
    return (
        'no best metric: the evaluation ran, but default_hooks.checkpoint.save_best is not set, or '
        'what it names was never a number; the log has the figures'
    )


def _relative(path: str | Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative


def _command(tool: str, *arguments: str) -> str:
    return shlex.join(['python', _relative(tools_dir() / tool), *arguments])
