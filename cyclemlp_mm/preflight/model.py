"""Model and schedule of a config: classes of the heads, weights, learning rate."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from cyclemlp_mm.checks import model_errors
from cyclemlp_mm.datasets.check_labels import IGNORE_INDEX
from cyclemlp_mm.engine.config_data import data_sets, evaluators, heads, heads_classes
from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import CodeError, UserError, count, some
from cyclemlp_mm.models.strict_init import StrictInit
from cyclemlp_mm.weights import read_checkpoint
from cyclemlp_mm.weights.unwrap import find_state_dict
from cyclemlp_mm.weights.whole_model import for_mmengine

from .findings import Report


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
            # The background is a class of softmax, the last one.
            background = key.endswith('loss_cls') and not settings.get('use_sigmoid')
            expected = num_classes + background
            if isinstance(weights, (list, tuple, np.ndarray)) and len(weights) != expected:
                report.error(
                    f'{key}.{name}',
                    f'has {count(len(weights), "weight")}, but there are '
                    f'{count(num_classes, "class")}{" and the background" * background}',
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
    if cfg.get('default_scope') != 'mmseg':
        return
    writers = []
    for _, dataset in data_sets(cfg):
        if dataset.get('reduce_zero_label'):
            writers.append('reduce_zero_label=True')
        if any(step.get('type') == 'CheckLabels' for step in dataset.get('pipeline') or ()):
            writers.append('CheckLabels (--ignore-label)')
    metrics = [
        (f'{p}_evaluator', metric) for p in ('val', 'test') for metric in evaluators(cfg, [p])
    ]
    for key, settings in [*heads(cfg.model), *metrics] if writers else ():
        for name in ('ignore_index', 'ignore_label'):
            label = settings.get(name)
            if isinstance(label, int) and label != IGNORE_INDEX:
                report.error(
                    f'{key}.{name}',
                    f'is {label}, but {writers[0]} makes {IGNORE_INDEX} of '
                    'labels to ignore: they would be taken for a class',
                    f'Leave {name} out, or set it to {IGNORE_INDEX}',
                )


def check_batch(report: Report, cfg: Config) -> None:
    """The learning rate is for a batch of ``base_batch_size``."""
    auto = cfg.get('auto_scale_lr') or {}
    base = auto.get('base_batch_size')
    every = cfg.get('optim_wrapper', {}).get('accumulative_counts', 1)
    images = every * cfg.train_dataloader.get('batch_size', 1)
    batch = images * int(os.environ.get('WORLD_SIZE', 1))
    if base not in (None, batch) and not auto.get('enable'):
        report.warning(
            'train_dataloader.batch_size',
            f'the batch is {batch}, but the learning rate was chosen for {base}: consider '
            '--auto-scale-lr',
        )
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if not hook.get('by_epoch', True) and hook.get('interval', 1) % every:
        report.warning(
            'default_hooks.checkpoint.interval',
            f'is no multiple of accumulative_counts={every}: a training resumed in the middle of '
            'an accumulated gradient loses its first half',
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
    for head in [module for module in model.modules() if hasattr(module, 'in_index')]:
        index = head.in_index
        read.update(index if isinstance(index, (list, tuple)) else [index])
    return {i % number for i in read}


def check_layer_decay(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether a constructor of learning rates by layer supports the backbone."""
    kind = str((cfg.get('optim_wrapper') or {}).get('constructor')).rpartition('.')[2]
    backbone = type(getattr(model, 'backbone', None)).__name__
    if kind not in ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor'):
        return
    if not any(name in backbone for name in ('ConvNeXt', 'BEiT', 'MAE')):  # raises an empty error
        report.error(
            'optim_wrapper.constructor',
            f'{kind} supports ConvNeXt, BEiT and MAE, not {backbone}',
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
        report.note(
            'model.backbone.init_cfg.checkpoint', f'{source} will be downloaded if it is not cached'
        )
    load_from = cfg.get('load_from')
    if load_from and '://' not in load_from and not cfg.get('resume'):
        try:
            content = for_mmengine(read_checkpoint(load_from), load_from)
            in_file = find_state_dict(content, load_from)
            report.note('load_from', compare(model, in_file, load_from, False))
        except UserError as error:
            report.error('load_from', str(error))


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
