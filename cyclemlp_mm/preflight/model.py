"""Model and schedule of a config: classes of the heads, weights, learning rate, disk space."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS
from torch import nn

from cyclemlp_mm.checks import model_errors
from cyclemlp_mm.datasets.check_labels import IGNORE_INDEX
from cyclemlp_mm.engine.check_weights import compare
from cyclemlp_mm.engine.config_data import data_sets, evaluators, heads, heads_classes
from cyclemlp_mm.errors import CodeError, UserError
from cyclemlp_mm.models.strict_init import StrictInit
from cyclemlp_mm.weights import read_checkpoint
from cyclemlp_mm.weights.unwrap import find_state_dict
from cyclemlp_mm.weights.whole_model import for_mmengine

from .findings import Report, count, some

_MIB = 1024 * 1024
_FSDP = ('ShardedStrategy', 'FSDPStrategy')
_NEED_GPUS = ('FSDPStrategy', 'DeepSpeedStrategy', 'ColossalAIStrategy')


def check_num_classes(report: Report, cfg: Config, num_classes: int) -> None:
    """Every head must have as many classes as the data, and top-k accuracies need k of them."""
    for key, value in heads_classes(cfg.model):
        if value != num_classes:
            report.error(
                key,
                f'is {value}, but the data set has {num_classes} classes',
                'Give --data DIR, which sets both, or make them equal',
            )
    for key, settings in heads(cfg.model):
        for name in ('class_weight', 'pos_weight'):
            weights = settings.get(name)
            if isinstance(weights, str):
                from mmseg.models.losses.utils import get_class_weight  # of mmseg's losses alone

                with suppress(OSError, ValueError, TypeError):  # reported when the model is built
                    weights = get_class_weight(weights)
            expected = num_classes
            if key.endswith('loss_cls') and not settings.get('use_sigmoid'):
                expected += 1  # the background is a class of softmax, the last one
            if isinstance(weights, (list, tuple, np.ndarray)) and len(weights) != expected:
                report.error(
                    f'{key}.{name}',
                    f'has {count(len(weights), "weight")}, but there are '
                    f'{count(num_classes, "class")}'
                    + ' and the background'
                    * (expected > num_classes),
                    f'Write {expected} weights, or leave it out',
                )
    for evaluator in evaluators(cfg):
        topk = evaluator.get('topk', 1)
        if max(topk if isinstance(topk, (list, tuple)) else (topk,)) > num_classes:
            report.error(
                'val_evaluator.topk',
                f'is {topk}, but the data set has {num_classes} classes',
                'Give --data DIR, which limits it, or leave the larger numbers out',
            )
            break  # test and validation mostly share one


def check_ignore_index(report: Report, cfg: Config) -> None:
    """mmseg's heads, losses and metrics must leave out the label that the pipeline writes: 255."""
    written = [
        what
        for split, dataset in data_sets(cfg)
        for what in (
            'reduce_zero_label=True' * bool(dataset.get('reduce_zero_label')),
            *(
                'CheckLabels (--ignore-label)'
                for step in dataset.get('pipeline') or ()
                if step.get('type') == 'CheckLabels'
            ),
        )
        if what
    ]
    if cfg.get('default_scope') != 'mmseg' or not written:
        return
    metrics = [
        (f'{phase}_evaluator', metric)
        for phase in ('val', 'test')
        for metric in evaluators(cfg, [phase])
    ]
    for key, settings in [*heads(cfg.model), *metrics]:
        for name in ('ignore_index', 'ignore_label'):
            label = settings.get(name)
            if isinstance(label, int) and label != IGNORE_INDEX:
                report.error(
                    f'{key}.{name}',
                    f'is {label}, but {written[0]} makes {IGNORE_INDEX} of '
                    'labels to ignore: they would be taken for a class',
                    f'Leave {name} out, or set it to {IGNORE_INDEX}',
                )


def check_batch(report: Report, cfg: Config) -> None:
    """The learning rate is for a batch of ``base_batch_size``."""
    auto = cfg.get('auto_scale_lr') or {}
    base = auto.get('base_batch_size')
    processes = int(os.environ.get('WORLD_SIZE', 1))
    every = cfg.get('optim_wrapper', {}).get('accumulative_counts', 1)
    batch = processes * every * cfg.train_dataloader.get('batch_size', 1)
    if base not in (None, batch) and not auto.get('enable'):
        report.warning(
            'train_dataloader.batch_size',
            f'the batch is {batch}, but the learning rate was chosen for {base}: consider '
            '--auto-scale-lr',
        )
    interval = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if not interval.get('by_epoch', True) and interval.get('interval', 1) % every:
        report.warning(
            'default_hooks.checkpoint.interval',
            f'is no multiple of accumulative_counts={every}: a training resumed in the middle of '
            'an accumulated gradient loses its first half',
        )


def check_strategy(report: Report, cfg: Config) -> None:
    """What a strategy that deals a model out needs, and what it cannot do."""
    kind = (cfg.get('strategy') or {}).get('type')
    if kind in _NEED_GPUS and get_device() == 'cpu':
        report.error(
            'strategy',
            f'{kind} deals a model out over GPUs, and PyTorch sees none',
            'Train where there are GPUs (tools/doctor.py says what is missing), or leave the '
            'strategy out of _base_',
        )
    elif kind in _FSDP and cfg.get('launcher', 'none') == 'none':
        report.error(
            'strategy',
            f'{kind} deals a model out over processes, and this is one alone',
            'Start them with tools/dist_train.sh CONFIG NUM_PROCESSES',
        )
    averaging = [h['type'] for h in cfg.get('custom_hooks') or [] if h.get('type') == 'EMAHook']
    if kind in _FSDP and averaging:
        report.error(
            'custom_hooks',
            f'EMAHook copies the model, which {kind} deals out in parts',
            'Leave it, or the strategy, out',
        )


def check_layers(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether what FSDP shall deal out one by one is in the model."""
    wrapper = (cfg.get('strategy') or {}).get('model_wrapper') or {}
    policy = wrapper.get('auto_wrap_policy')
    if not isinstance(policy, dict) or policy.get('type') != 'shard_layers':
        return
    layers = list(policy.get('layers') or ())
    kinds = {type(module).__name__ for module in model.modules()}
    if not kinds.intersection(layers):
        report.warning(
            'strategy.model_wrapper.auto_wrap_policy.layers',
            f'the model has no layer of a class {some(layers)}: all of it is put together for '
            "each step, which saves no memory then. Name the class of your backbone's blocks",
        )


def check_levels(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether every level of a backbone of ours is used: else its output norm learns nothing."""
    backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
    if not isinstance(backbone, StrictInit) or (neck is None and cfg.default_scope == 'mmdet'):
        return  # mmdet's heads without a neck, such as Mask2Former's, take what they need
    levels = backbone.out_indices
    maps = [
        torch.zeros(1, channels, max(128 // stride, 2), max(128 // stride, 2), requires_grad=True)
        for channels, stride in zip(backbone.out_channels, backbone.out_strides, strict=True)
    ]
    try:
        outputs = maps if neck is None else list(neck.eval()(tuple(maps)))
        used = [outputs[i] for i in _read_levels(cfg, model, len(outputs))]
        grads = torch.autograd.grad(sum(x.sum() for x in used), maps, allow_unused=True)
    except Exception:  # a neck or head that is not like others: nothing is known of it
        return
    finally:
        if neck is not None:
            neck.train()
    unused = [i for i, grad in zip(levels, grads, strict=True) if grad is None]
    kept = tuple(i for i in levels if i not in unused)
    names = [n for n, p in backbone.named_parameters() if p.requires_grad]
    idle = [n for n in names if n.startswith(tuple(f'norm{i}.' for i in unused))]
    if unused and kept and (idle or unused[-1] > kept[-1]):
        report.warning(
            'model.backbone.out_indices',
            f'is {levels}, but neither neck nor heads use {some([f"level {i}" for i in unused])}: '
            f'their output norms get no gradient, and DDP stops at them. Set it to {kept}; '
            'in_index of the heads and in_channels of the neck count what is returned',
        )


def _read_levels(cfg: Config, model: nn.Module, number: int) -> set[int]:
    """Which of ``number`` maps the heads read."""
    if cfg.default_scope == 'mmpretrain':
        return {number - 1}
    if cfg.default_scope != 'mmseg':
        return set(range(number))
    read = set()
    for part in ('decode_head', 'auxiliary_head'):
        heads = getattr(model, part, None)
        for head in heads if isinstance(heads, nn.ModuleList) else [heads] * (heads is not None):
            index = head.in_index
            read.update(index if isinstance(index, (list, tuple)) else [index])
    return {i % number for i in read}


def check_layer_decay(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether a constructor of learning rates by layer knows the backbone."""
    kind = str((cfg.get('optim_wrapper') or {}).get('constructor')).rpartition('.')[2]
    backbone = type(getattr(model, 'backbone', None)).__name__
    if kind in ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor'):
        fits = any(name in backbone for name in ('ConvNeXt', 'BEiT', 'MAE'))
        why = f'{kind} knows ConvNeXt, BEiT and MAE, not {backbone}'
    else:
        fits = kind != 'LearningRateDecayOptimWrapperConstructor' or hasattr(
            model, 'get_layer_depth'
        )
        why = f'{kind} is for classifiers: a {type(model).__name__} has no get_layer_depth'
    if not fits:
        report.error(
            'optim_wrapper.constructor',
            why,
            'Classifiers take LearningRateDecayOptimWrapperConstructor (mmpretrain) with '
            'paramwise_cfg=dict(layer_decay_rate=0.75). For others leave the constructor out and '
            "set paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)})",
        )


def check_weights(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether the named weights are there and fit; URLs are left to the training."""
    init_cfg = cfg.model.get('backbone', {}).get('init_cfg') or {}
    source = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
    if source and '://' not in source:
        try:
            model.backbone.init_weights()
        except UserError as error:
            report.error('model.backbone.init_cfg.checkpoint', str(error))
    elif source:
        report.note('model.backbone.init_cfg.checkpoint', f'{source} is downloaded unless it was')
    load_from = cfg.get('load_from')
    if load_from and '://' not in load_from and not cfg.get('resume'):
        try:
            content = for_mmengine(read_checkpoint(load_from), load_from)
            in_file = find_state_dict(content, load_from)
            report.note('load_from', compare(model, in_file, load_from, False))
        except UserError as error:
            report.error('load_from', str(error))


def check_work_dir(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether checkpoints can be written, and how many there is room for."""
    folder = Path(cfg.work_dir).resolve()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        report.error(
            folder,
            f'cannot be written ({error.strerror or error})',
            'Take another --work-dir, or make it writable',
        )
        return
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    parameters = sum(p.numel() for p in model.parameters())
    # Weights, and what Adam keeps of each; twice as many weights with an average of them.
    hooks = cfg.get('custom_hooks') or []
    size = 4 * parameters * (3 + any('EMA' in str(h.get('type')) for h in hooks))
    kept = hook.get('max_keep_ckpts', -1)
    needed = size * (max(kept, 0) + 1 + bool(hook.get('save_best')))  # one is being written
    free = shutil.disk_usage(folder).free
    said = f'{free // _MIB} MiB are free; a checkpoint takes about {size // _MIB} MiB'
    if free < 2 * size:
        report.error(folder, said, 'Make space, or take another --work-dir')
    elif free < needed:
        report.warning(
            folder,
            f'{said}, and {needed // _MIB} MiB will be needed for all that are '
            f'kept (max_keep_ckpts={kept})',
        )


def build_model(report: Report, cfg: Config) -> nn.Module | None:
    """The model, without weights; None where the config cannot be built."""
    try:
        with model_errors(cfg.filename):
            return MODELS.build(cfg.model)
    except CodeError:  # for its traceback
        raise
    except UserError as error:
        report.error('model', str(error))
        return None
