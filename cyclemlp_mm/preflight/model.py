"""Model, schedule, sharding and work dir of a config."""

import copy
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS
from torch import nn

from cyclemlp_mm.checks import check_writable, model_errors
from cyclemlp_mm.datasets.load_labels import IGNORE_INDEX
from cyclemlp_mm.engine.config_data import data_sets, evaluators, heads, heads_classes
from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import CodeError, UserError, count, some
from cyclemlp_mm.models.strict_init import StrictInit
from cyclemlp_mm.weights import read_checkpoint
from cyclemlp_mm.weights.unwrap import find_state_dict
from cyclemlp_mm.weights.whole_model import for_mmengine

from .findings import Report
from .segmentation import heads_of

_MIB = 1024 * 1024
_FSDP = ('ShardedStrategy', 'FSDPStrategy')
_LAYER_DECAY = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')
_NEED_GPUS = ('FSDPStrategy', 'DeepSpeedStrategy', 'ColossalAIStrategy')


def check_num_classes(report: Report, cfg: Config, num_classes: int) -> None:
    """Every head must have as many classes as the data, and top-k accuracies need k of them."""
    there = f'but the data set has {count(num_classes, "class")}'
    for key, value in heads_classes(cfg.model):
        if value != num_classes:
            report.error(key, f'is {value}, {there}', 'Give --data DIR, or make them equal')
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
                what = f'has {count(len(weights), "weight")}, {there}'
                fix = f'Write {expected} weights{" (one for the background)" * background}'
                report.error(f'{key}.{name}', what, fix)
    for evaluator in evaluators(cfg):
        topk = evaluator.get('topk', 1)
        if max(topk if isinstance(topk, (list, tuple)) else (topk,)) > num_classes:
            fix = 'Give --data DIR, or leave the larger numbers out'
            report.error('val_evaluator.topk', f'is {topk}, {there}', fix)
            break  # test and validation mostly share one


def check_ignore_index(report: Report, cfg: Config) -> None:
    """mmseg's heads, losses and metrics must leave out the label that the pipeline writes: 255."""
    data = str([dataset for _, dataset in data_sets(cfg)])
    writer = re.search("reduce_zero_label(?=': True)|CheckLabels", data)
    if writer is None or cfg.get('default_scope') != 'mmseg':
        return
    metrics = [(f'{p}_evaluator', one) for p in ('val', 'test') for one in evaluators(cfg, [p])]
    for key, settings in [*heads(cfg.model), *metrics]:
        for name in ('ignore_index', 'ignore_label'):
            label = settings.get(name)
            if isinstance(label, int) and label != IGNORE_INDEX:
                what = f'is {label}, but {writer[0]} makes {IGNORE_INDEX} of ignored labels'
                report.error(f'{key}.{name}', what, f'Leave it out, or set it to {IGNORE_INDEX}')


def check_batch(report: Report, cfg: Config, number: int) -> None:
    """The learning rate is for a batch of ``base_batch_size``; ``number`` images must fill one."""
    auto = cfg.get('auto_scale_lr') or {}
    base = auto.get('base_batch_size')
    every = cfg.get('optim_wrapper', {}).get('accumulative_counts', 1)
    images = every * cfg.train_dataloader.get('batch_size', 1)
    processes = int(os.environ.get('WORLD_SIZE', 1))
    batch, size = images * processes, cfg.train_dataloader.get('batch_size', 1)
    repeats = 'dataset' in cfg.train_dataloader.dataset
    if cfg.train_dataloader.get('drop_last') and number < size * processes and not repeats:
        what = f'is {size}, but of {count(number, "image")}, drop_last leaves no batch'
        report.error('train_dataloader.batch_size', what, 'Set a smaller one')
    if base not in (None, batch) and not auto.get('enable'):
        what = f'the batch is {batch}, but the learning rate was chosen for {base}'
        report.warning('train_dataloader.batch_size', what, 'Consider --auto-scale-lr')
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if not hook.get('by_epoch', True) and hook.get('interval', 1) % every:
        what = f'is no multiple of accumulative_counts={every}: resuming may lose gradients'
        fix = f'Set it to a multiple of {every}'
        report.warning('default_hooks.checkpoint.interval', what, fix)


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
        outputs = maps if neck is None else copy.deepcopy(neck).eval()(tuple(maps))
        used = [-1] if cfg.default_scope == 'mmpretrain' else range(len(outputs))
        if cfg.default_scope == 'mmseg':
            used = [i for head in heads_of(model) for i in np.ravel(head.in_index)]
        grads = torch.autograd.grad(sum(outputs[i].sum() for i in used), maps, allow_unused=True)
    except Exception:  # a neck or head that is not like others: nothing is known of it
        return
    unused = [i for i, grad in zip(levels, grads, strict=True) if grad is None]
    kept = tuple(i for i in levels if i not in unused)
    names = [n for n, p in backbone.named_parameters() if p.requires_grad]
    idle = [n for n in names if n.startswith(tuple(f'norm{i}.' for i in unused))]
    if unused and kept and (idle or unused[-1] > kept[-1]):
        what = f'is {levels}, but neither neck nor heads use {some([f"level {i}" for i in unused])}'
        fix = f'Set it to {kept}, and fit in_index of the heads and in_channels of the neck'
        report.warning('model.backbone.out_indices', f'{what}: DDP stops at it', fix)


def check_custom_keys(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether each of ``custom_keys`` is in the name of a parameter, and says what is read."""
    keys = (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    names = [name for name, _ in model.named_parameters()]
    for name, part in keys.items() if 'constructor' not in cfg.optim_wrapper else ():
        key = f'optim_wrapper.paramwise_cfg.custom_keys.{name}'
        if not any(name in parameter for parameter in names):
            report.warning(key, 'is in the name of no parameter of the model: it changes nothing')
        if unknown := sorted(set(part or ()) - {'lr_mult', 'decay_mult'}):
            report.error(key, f'has {some(unknown)}, but takes lr_mult and decay_mult')


def check_layer_decay(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether a constructor of learning rates by layer supports the backbone; it does not say."""
    kind = str((cfg.get('optim_wrapper') or {}).get('constructor')).rpartition('.')[2]
    backbone = type(getattr(model, 'backbone', None)).__name__
    supported = any(name in backbone for name in ('ConvNeXt', 'BEiT', 'MAE'))
    if not supported and kind in _LAYER_DECAY:
        what = f'{kind} supports ConvNeXt, BEiT and MAE, not {backbone}'
        fix = 'Classifiers take LearningRateDecayOptimWrapperConstructor and paramwise_cfg='
        fix += 'dict(layer_decay_rate=0.75), others paramwise_cfg.custom_keys without a constructor'
        report.error('optim_wrapper.constructor', what, fix)


def check_weights(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether the named weights are there and fit; URLs are left to the training."""
    key = 'model.backbone.init_cfg.checkpoint'
    init_cfg = cfg.model.get('backbone', {}).get('init_cfg') or {}
    source = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
    if source and '://' in source:
        report.note(key, f'{source} will be downloaded if it is not cached')
    elif source:
        try:
            model.backbone.init_weights()
        except UserError as error:
            report.error(key, str(error))
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
    except UserError as error:
        if isinstance(error, CodeError):  # for its traceback
            raise
        report.error('model', str(error))
        return None


def check_sharding(report: Report, cfg: Config, model: nn.Module) -> None:
    """What a strategy that shards a model needs, what it cannot do, and whether it saves memory."""
    strategy = cfg.get('strategy') or {}
    kind = strategy.get('type')
    if kind in _NEED_GPUS and get_device() == 'cpu':
        what = f'{kind} shards a model over GPUs, and PyTorch sees none'
        report.error('strategy', what, 'See tools/doctor.py, or leave the strategy out of _base_')
    elif kind in _FSDP and cfg.get('launcher', 'none') == 'none':
        what = f'{kind} shards a model over processes, and this is one alone'
        report.error('strategy', what, 'Start them with tools/dist_train.sh CONFIG NUM_PROCESSES')
    if kind in _FSDP and any(h.get('type') == 'EMAHook' for h in cfg.get('custom_hooks') or []):
        what = f'EMAHook copies the model, which {kind} shards'
        report.error('custom_hooks', what, 'Leave one of them out')
    policy = (strategy.get('model_wrapper') or {}).get('auto_wrap_policy')
    if isinstance(policy, dict) and policy.get('type') == 'shard_layers':
        layers = list(policy.get('layers') or ())
        if not {type(module).__name__ for module in model.modules()}.intersection(layers):
            key = 'strategy.model_wrapper.auto_wrap_policy.layers'
            what = f'the model has no layer of a class {some(layers)}, so sharding saves no memory'
            report.warning(key, what, "Name the class of your backbone's blocks")


def check_work_dir(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether checkpoints can be written, and how many there is room for."""
    try:
        check_writable(cfg.work_dir, '--work-dir', is_folder=True)
    except UserError as error:
        report.error('work_dir', str(error))
        return
    folder = next(path for path in Path(cfg.work_dir, '_').resolve().parents if path.exists())
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    averages = any('EMA' in str(hook.get('type')) for hook in cfg.get('custom_hooks') or [])
    # Weights, and what Adam keeps of each; twice as many weights with an average of them.
    size = 4 * sum(p.numel() for p in model.parameters()) * (3 + averages)
    kept = hook.get('max_keep_ckpts', -1)
    needed = size * (max(kept, 0) + 1 + bool(hook.get('save_best')))  # one is being written
    free = shutil.disk_usage(folder).free
    what = f'{free // _MIB} MiB are free; a checkpoint takes about {size // _MIB} MiB'
    if free < 2 * size:
        report.error(folder, what, 'Make space, or take another --work-dir')
    elif free < needed:
        report.warning(folder, f'{what}, all of max_keep_ckpts={kept} {needed // _MIB} MiB')
