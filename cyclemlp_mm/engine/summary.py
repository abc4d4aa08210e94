"""What a training ends with: the best figure, where the weights are, and what to do with them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop, Runner

from .atomic_checkpoints import NUM_FIGURES
from .config_files import tools_dir
from .non_finite import StopOnNonFiniteLoss


def run_summary(runner: Runner) -> str:
    """Describe a finished training.

    Args:
        runner (Runner): After ``train()``.

    Returns:
        str: A few lines: best metrics with their checkpoints, the last checkpoint, commands that
        test it, predict with it and show the curves.
    """
    info = runner.message_hub.runtime_info
    lines = []
    checkpoint = None
    for metric, score, file in _best(runner):
        checkpoint = checkpoint or file
        lines.append(f'best {metric}: {score:.4g}, in {_relative(file)}')
    if not lines:
        lines.append(_why_no_best(info.get(NUM_FIGURES)))
    if any(isinstance(h, StopOnNonFiniteLoss) and not h.num_iters for h in runner.hooks):
        lines.insert(0, _why_no_iteration(runner))
    if info.get('last_ckpt'):
        lines.append(f'last checkpoint: {_relative(info["last_ckpt"])}')
        checkpoint = checkpoint or info['last_ckpt']
    if checkpoint is None:
        return '\n'.join([*lines, 'no checkpoint was saved'])
    config = Path(runner.work_dir) / Path(runner.cfg.filename or 'config.py').name
    files = [_relative(config), _relative(checkpoint)]
    lines.append(f'test it:   {_command("test.py", *files)}')
    if runner.cfg.get('default_scope') in ('mmdet', 'mmseg'):
        lines.append(f'use it:    {_command("infer.py", *files)} IMAGES')
    backends = (runner.cfg.get('visualizer') or {}).get('vis_backends') or ()
    kinds = [backend['type'] for backend in backends]
    if 'TensorboardVisBackend' in kinds:
        folder = shlex.quote(_relative(runner.work_dir))
        lines.append(f'curves:    tensorboard --logdir {folder}')
    return '\n'.join(lines)


def _why_no_iteration(runner: Runner) -> str:
    loop = runner.train_loop
    end = ('max_epochs', runner.epoch, runner.max_epochs)
    if isinstance(loop, IterBasedTrainLoop):
        end = ('max_iters', runner.iter, runner.max_iters)
    return (
        f'nothing was left to train: the checkpoint is at {end[1]}, and train_cfg.{end[0]} is '
        f'{end[2]}. To train longer, resume with a larger --cfg-options train_cfg.{end[0]}'
    )


def _best(runner: Runner) -> list[tuple[str, float, str]]:
    """Metric, its best value and the checkpoint, of every metric that ``save_best`` watches."""
    info = runner.message_hub.runtime_info
    found = []
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or not getattr(hook, 'key_indicators', None):
            continue
        for metric in hook.key_indicators:
            suffix = '' if len(hook.key_indicators) == 1 else f'_{metric}'
            score, file = info.get(f'best_score{suffix}'), info.get(f'best_ckpt{suffix}')
            if file is not None:
                found.append((metric, float(score), file))
    return found


def _why_no_best(figures: int | None) -> str:
    if figures is None:
        return 'no metric: no evaluation ran'
    if figures == 0:  # so of mmdet's, without a single box
        return (
            'no metric: the evaluation ran, and the model found nothing that could be scored (a '
            'detector: no box); it may need a longer training'
        )
    return (
        'no best metric: the evaluation ran, but default_hooks.checkpoint.save_best is not set, or '
        'what it names was never a number; the log has the figures'
    )


def _relative(path: str | Path) -> str:
    """As short as it can be said from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative


def _command(tool: str, *arguments: str) -> str:
    return shlex.join(['python', _relative(tools_dir() / tool), *arguments])
