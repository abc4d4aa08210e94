"""What a training ends with: the best figure, where the weights are, and what to do with them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop, Runner

from .config_files import tools_dir
from .hooks.stop import StopOnNonFiniteLoss


def run_summary(runner: Runner) -> str:
    """Best metrics with their checkpoints, the last checkpoint, and commands to go on with."""
    info = runner.message_hub.runtime_info
    lines, best = [], list(_best(runner))
    if any(isinstance(h, StopOnNonFiniteLoss) and not h.num_iters for h in runner.hooks):
        by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
        key, done = ('max_iters', runner.iter) if by_iter else ('max_epochs', runner.epoch)
        lines = [
            f'nothing was left to train: the checkpoint is at {done}, and train_cfg.{key} is '
            f'{getattr(runner, key)}. Resume with a larger --cfg-options train_cfg.{key}'
        ]
    lines += [f'best {metric}: {score:.4g}, in {_relative(file)}' for metric, score, file in best]
    if not best:
        lines.append(
            'no best metric: no evaluation ran, it gave no number (a detector that found nothing), '
            'or default_hooks.checkpoint.save_best is not set; see the log'
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


def _relative(path: str | Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative


def _command(tool: str, *arguments: str) -> str:
    return shlex.join(['python', _relative(tools_dir() / tool), *arguments])
