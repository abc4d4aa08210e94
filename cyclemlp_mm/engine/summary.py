"""What a run begins with (data, model, schedule, device) and what a training ends with."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from cyclemlp_mm.errors import count, some

from .config_files import tools_dir
from .hooks.stop import StopOnNonFiniteLoss
from .runner.strategy import is_sharded


class LogSummary(Hook):
    """Logs what is trained or tested, one line each; the tools register it, not the config."""

    priority = 'VERY_LOW'  # after the weights are loaded
    _is_logged = False

    def before_train(self, runner: Runner) -> None:
        loaders = dict(train=runner.train_loop.dataloader)
        if isinstance(getattr(runner.val_loop, 'dataloader', None), DataLoader):
            loaders['val'] = runner.val_loop.dataloader
        weights = []
        is_resumed = runner.iter > 0
        if not (is_resumed or runner.cfg.get('load_from') or _names_a_file(runner.model)):
            weights = ['weights   random: the config names none to start from']
        self._log(runner, loaders, [*weights, f'schedule  {_schedule(runner)}'])

    def before_test(self, runner: Runner) -> None:
        """Log what is tested, before the first of several tests."""
        if not self._is_logged:
            loader, views = runner.test_loop.dataloader, []
            if runner.cfg.get('default_scope') in ('mmdet', 'mmseg'):
                views = [f'testing   {_views(loader.dataset)}']
            self._log(runner, dict(test=loader), views)

    def _log(self, runner: Runner, loaders: dict[str, DataLoader], after_model: list[str]) -> None:
        self._is_logged = True
        first = next(iter(loaders.values())).dataset
        names = getattr(first, 'metainfo', {}).get('classes') or ()
        classes = [f'classes   {len(names)}: {some(list(names))}'] * bool(names)
        data = [f'{split:9} {_data(loader.dataset)}' for split, loader in loaders.items()]
        model = f'model     {_model(runner.model)}'
        written = f'written   {_relative(runner.work_dir)} (log: {_relative(runner.log_dir)})'
        device = f'device    {_device()}'
        for line in [*data, *classes, model, *after_model, device, written]:
            runner.logger.info(line)


def _names_a_file(model: nn.Module) -> bool:
    """Whether a part of the model is initialised from a file; our backbones keep those apart."""
    names = ('init_cfg', 'pretrained_cfgs')
    settings = [str(getattr(part, name, None)) for part in model.modules() for name in names]
    return any('Pretrained' in text or 'checkpoint' in text for text in settings)


def _data(dataset: object) -> str:
    root = getattr(dataset, 'data_root', None)
    objects = count_objects(dataset)
    found = count(len(dataset), 'image') if hasattr(dataset, '__len__') else 'images'
    found += '' if objects is None else f', {count(objects, "object")}'
    return found + (f', in {_relative(root)}' if root else '')


def count_objects(dataset: object) -> int | None:
    """Number of objects of a detector's data set, also in others around it; None if not known."""
    if hasattr(dataset, 'datasets'):
        counts = [count_objects(one) for one in dataset.datasets]
        return None if None in counts else sum(counts)
    inner = getattr(dataset, 'dataset', None)
    if inner is not None:  # of one that repeats images, the number says nothing
        return count_objects(inner) if len(inner) == len(dataset) else None
    return getattr(dataset, 'num_objects', None)


def _views(dataset: object) -> str:
    """How many views of an image are tested, at several scales and flipped."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    views = next((step.subroutines for step in steps if hasattr(step, 'subroutines')), ())
    return f'{len(views)} views per image' if views else 'single scale'


def _model(model: nn.Module) -> str:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    text = f'{type(model).__name__}{_parameters(model)}'
    backbone = getattr(model, 'backbone', None)
    return text if backbone is None else f'{text}; {type(backbone).__name__}{_parameters(backbone)}'


def _parameters(model: nn.Module) -> str:
    if is_sharded(model):  # this process has a part of them
        return ''
    return f', {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters'


def _schedule(runner: Runner) -> str:
    loop, loader, wrapper = runner.train_loop, runner.train_loop.dataloader, runner.optim_wrapper
    length = f'{loop.max_iters} iterations'
    if not isinstance(loop, IterBasedTrainLoop):
        length = f'{count(loop.max_epochs, "epoch")} of {count(len(loader), "iteration")}'
    size = getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
    processes = f' in each of {get_world_size()} processes' if get_world_size() > 1 else ''
    parts = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    names = ', '.join(type(part.optimizer).__name__ for part in parts)
    groups = [group for part in parts for group in part.param_groups]
    rates = sorted({group.get('initial_lr', group['lr']) for group in groups})
    text = f'{length}, batch {size}{processes}; {names}, learning rate '
    text += f'{rates[0]:.4g}' + (f' to {rates[-1]:.4g}' if len(rates) > 1 else '')
    return text + (f'; continues after iteration {runner.iter}' if runner.iter else '')


def _device() -> str:
    if torch.cuda.is_available():
        return f'{get_world_size()} × {torch.cuda.get_device_name()}'
    return f'CPU, {count(torch.get_num_threads(), "thread")}'


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
