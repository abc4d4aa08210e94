"""Settings that mmengine ignores, that stop a training late, or in a message without their key."""

import difflib
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from mmengine import registry as mm
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.optim import ReduceOnPlateauParamScheduler
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from cyclemlp_mm.checks import is_number
from cyclemlp_mm.engine.config_files import TRUTHS, unread_names, walk

from .findings import Report

_WARM_UPS = ('LinearLR', 'ConstantLR')
_COCO_METRICS = ('bbox', 'segm', 'proposal', 'proposal_fast')
#: What follows a figure of the evaluation, with the key that names it and the key's default.
_WATCHING = (
    (CheckpointHook, 'save_best', None),
    (EarlyStoppingHook, 'monitor', None),
    (ReduceOnPlateauParamScheduler, 'monitor', 'loss'),
)
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_NEEDED = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
#: Least values of keys with a whole number.
_LEAST = {
    **{f'{loader}.batch_size': 1 for loader in _LOADERS},
    **{f'{loader}.num_workers': 0 for loader in _LOADERS},
    **{f'train_cfg.{key}': 1 for key in ('max_epochs', 'max_iters', 'val_interval')},
    'default_hooks.checkpoint.interval': -1,
    'default_hooks.logger.interval': 1,
    'optim_wrapper.accumulative_counts': 1,
    'max_non_finite': 1,
    'randomness.seed': 0,
}
#: Sections that are looked into. Other names at the top of a config are variables of it.
_SECTIONS = (
    *_LOADERS,
    *('train_cfg', 'val_cfg', 'test_cfg', 'val_evaluator', 'test_evaluator'),
    *('optim_wrapper', 'param_scheduler', 'default_hooks', 'custom_hooks', 'visualizer'),
    *('log_processor', 'env_cfg', 'randomness', 'auto_scale_lr'),
)
#: Keys with settings inside of settings that have a type.
_INNER = (
    *('dataset', 'datasets', 'pipeline', 'transforms', 'sampler', 'batch_sampler', 'optimizer'),
    *('metrics', 'vis_backends'),
)
#: Registries of the types in them; mmengine itself names a type that is of another registry.
_REGISTRIES = (
    *(mm.TRANSFORMS, mm.HOOKS, mm.DATASETS, mm.DATA_SAMPLERS, mm.METRICS, mm.PARAM_SCHEDULERS),
    *(mm.LOOPS, mm.OPTIMIZERS, mm.OPTIM_WRAPPERS, mm.VISBACKENDS, mm.VISUALIZERS, mm.EVALUATOR),
    mm.LOG_PROCESSORS,
)
#: Keys that mmengine removes before it builds a class.
_REMOVED = {
    *('type', '_scope_', 'priority', 'optimizer', 'constructor', 'paramwise_cfg'),
    'convert_to_iter_based',
}
#: Names that models and data sets read from settings without a class.
_READ = {
    'test_cfg': {
        *('rpn', 'rcnn', 'nms_pre', 'min_bbox_size', 'score_thr', 'nms', 'max_per_img', 'mode'),
        *('mask_thr_binary', 'crop_size', 'stride', 'max_per_class'),
    },
    'train_cfg': {
        *('rpn', 'rpn_proposal', 'rcnn', 'assigner', 'sampler', 'allowed_border', 'pos_weight'),
        *('debug', 'nms_pre', 'nms', 'max_per_img', 'min_bbox_size', 'mask_size', 'ga_assigner'),
        *('ga_sampler', 'reg_assigner'),
    },
    'filter_cfg': {'filter_empty_gt', 'min_size'},
}


def _arguments(*functions: Callable) -> set[str]:
    return {name for function in functions for name in inspect.signature(function).parameters}


#: Constructors of optimisers that read ``paramwise_cfg`` so; mmpretrain's has its layer decay.
_CONSTRUCTORS = (
    *('Default', 'DefaultOptimWrapperConstructor'),
    'LearningRateDecayOptimWrapperConstructor',
)
_OF_A_LOADER = _arguments(DataLoader) | {'num_batch_per_epoch', 'disable_subprocess_warning'}
#: Keys that mmengine reads from dicts without a type; it ignores others in most of them.
_KEYS = {
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'randomness': _arguments(Runner.set_randomness) - {'self'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'paramwise_cfg': {
        *('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'bypass_duplicate'),
        *('dwconv_decay_mult', 'flat_decay_mult', 'dcn_offset_lr_mult', 'layer_decay_rate'),
    },
    'clip_grad': {'type'} | _arguments(nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_),
    **dict.fromkeys(_LOADERS, _OF_A_LOADER),
}


def check_settings(report: Report, cfg: Config) -> None:
    """Compare settings with what mmengine takes; the toolbox's scope has to be the default."""
    if absent := [key for key in _NEEDED if cfg.get(key) is None]:
        report.error(', '.join(absent), 'is None; a training needs it')
    for phase in ('val', 'test'):
        keys = [f'{phase}_dataloader', f'{phase}_cfg', f'{phase}_evaluator']
        absent = [key for key in keys if cfg.get(key) is None]
        if absent and absent != keys:
            report.error(', '.join(absent), f'is None, but not all of {", ".join(keys)} are')
    for key, read, is_old in unread_names(cfg):
        what = 'is of an earlier version, and read by nothing' if is_old else 'is read by nothing'
        fix = f'Today that is {read}' if is_old else f'Did you mean {read}?'
        report.add('warning' if is_old else 'error', key, what, fix)
    _check_texts(report, cfg)
    _check_numbers(report, cfg)
    if 'strategy' in cfg and 'runner_type' not in cfg:
        what = 'is read by runner_type="FlexibleRunner" only'
        report.error('strategy', what, 'Set it, or leave the strategy out')
    check_signatures(report, cfg)
    named = cfg.get('default_hooks') or {}
    hooks = [(f'default_hooks.{name}', hook) for name, hook in named.items()]
    hooks += _numbered('custom_hooks', cfg.get('custom_hooks'))
    for key, part in [*hooks, *_numbered('param_scheduler', cfg.get('param_scheduler'))]:
        kind = class_of(part) if isinstance(part, dict) else None
        for watching, name, default in _WATCHING:
            if inspect.isclass(kind) and issubclass(kind, watching):
                _check_watched(report, cfg, f'{key}.{name}', part.get(name, default))


def check_schedule(report: Report, cfg: Config) -> None:
    """Report a schedule of the learning rate that ends before it begins, and one that, its warm-up
    aside, is not as long as training or has milestones after its end."""
    settings = cfg.get('train_cfg') or {}
    unit = 'max_epochs' if 'max_epochs' in settings else 'max_iters'
    length, ends = settings.get(unit), {}
    parts = _numbered('param_scheduler', cfg.get('param_scheduler'))
    parts = [(key, part) for key, part in parts if isinstance(part, dict)]
    for key, part in parts:
        begin, end = part.get('begin', 0), part.get('end')
        if not (is_number(begin) and is_number(end)):
            continue
        if begin >= end:
            what = f'begins at {begin}, but ends at {end}'
            report.error(key, what, 'Set a smaller begin, also as end of the part before it')
        if late := [n for n in part.get('milestones') or () if is_number(n) and n >= end]:
            what = f'has {late}, but the part ends at {end}: the learning rate does not drop there'
            report.warning(f'{key}.milestones', what, 'Set earlier ones')
    for key, part in parts:
        if part.get('type') not in (None, *_WARM_UPS):
            end, by_epoch = part.get('end'), part.get('by_epoch', True)
            if by_epoch != (unit == 'max_epochs') or not is_number(end):
                return  # of another unit, or to the end
            ends[end] = key
    if ends and is_number(length) and max(ends) != length:
        what = f'is {max(ends)}, but train_cfg.{unit} is {length}'
        option = re.sub(r'\[(\d+)\]', r'.\1', ends[max(ends)])
        fix = f'Give --cfg-options {option}.end={length}, and fit its milestones or T_max'
        report.warning(f'{ends[max(ends)]}.end', what, fix)


def _check_texts(report: Report, cfg: Config) -> None:
    """Texts in place of booleans, names that are nearly one that models and data sets read, and a
    level of the log that does not exist."""
    for key, value in walk(cfg.to_dict()):
        parent, _, name = key.rpartition('.')
        is_truth = isinstance(value, str) and value.lower() in TRUTHS
        if is_truth and not name.isdigit() and 'metainfo' not in parent:
            what = f'is the text {value!r}, which counts as true'
            report.error(key, what, 'Write True or False, without quotes')
        read = _READ.get(parent.rpartition('.')[2], ())
        near = difflib.get_close_matches(name, read, n=1, cutoff=0.8)
        if name == 'max_per_image' and 'panoptic' in str(cfg.get('model')):
            near = []
        if near and name not in read and ('model.' in key or 'dataset' in key):
            report.error(key, 'is read by nothing', f'Did you mean {near[0]}?')
    level = cfg.get('log_level', 'INFO')
    if not isinstance(level, int) and not isinstance(logging.getLevelName(level), int):
        report.error('log_level', f'is {level!r}', 'Set it to DEBUG, INFO, WARNING or ERROR')


def _check_numbers(report: Report, cfg: Config) -> None:
    """Values that are not numbers, or out of range."""
    values = dict(walk(cfg.to_dict()))
    for key, least in _LEAST.items():
        value, is_seed = values.get(key, least), key == 'randomness.seed'
        most = 2**32 - 1 if is_seed else math.inf  # NumPy's limit
        is_whole = is_number(value) and value == int(value)
        is_whole &= key.startswith('train_cfg') or type(value) is int  # loops take 12.0
        if not (is_whole and least <= value <= most) and not (is_seed and value is None):
            expected = f'a whole number from {least}' + f' to {most}' * is_seed
            report.error(key, f'is {value!r}, but must be {expected}')
    fraction = cfg.get('max_bad_fraction', 0)
    if not is_number(fraction) or not 0 <= fraction <= 1:
        report.error('max_bad_fraction', f'is {fraction!r}, but must be a number in [0, 1]')


def check_signatures(report: Report, cfg: Config, only: Iterable[str] = ('',)) -> None:
    """Find types that do not exist, and settings that no class takes.

    ``only`` has beginnings of the sections to look at; the toolbox's scope has to be the default.
    """
    for name in _SECTIONS:
        if name in cfg and name.startswith(tuple(only)):
            _check_part(report, name, cfg[name])
            if name in _LOADERS:
                _check_loader(report, name, cfg[name] or {})
            for key, metric in _numbered(name, cfg[name] if 'evaluator' in name else None):
                _check_coco_metric(report, key, metric, str(cfg.get('model')))


def _check_loader(report: Report, key: str, settings: dict) -> None:
    """Settings of a loader that do not go together, or leave images out of an evaluation."""
    if settings.get('num_workers') == 0 and settings.get('persistent_workers') is True:
        what, fix = 'is True, but num_workers is 0', f'--cfg-options {key}.persistent_workers=False'
        report.error(f'{key}.persistent_workers', what, f'Give {fix}')
    if settings.get('drop_last') and settings.get('batch_sampler'):
        what = 'is True next to a batch_sampler, with which PyTorch does not take it'
        report.error(f'{key}.drop_last', what, 'Leave it out')
    elif settings.get('drop_last') and key != 'train_dataloader':
        what = 'is True: images of an incomplete last batch would not be evaluated'
        report.error(f'{key}.drop_last', what, 'Leave it out')


def _check_coco_metric(report: Report, key: str, settings: object, model: str) -> None:
    """Whether COCO's metric compares what there is, and what the model predicts."""
    if not isinstance(settings, dict) or not str(settings.get('type')).endswith('CocoMetric'):
        return
    for kind in _listed(settings.get('metric', 'bbox')):
        if kind not in _COCO_METRICS:
            fix = f'It has {", ".join(_COCO_METRICS)}'
            report.error(f'{key}.metric', f'is {kind!r}, which COCO does not have', fix)
        elif kind == 'segm' and 'mask' not in model.lower():
            report.error(f'{key}.metric', "is 'segm', but the model predicts no masks")


def _check_part(report: Report, key: str, settings: object) -> None:
    """The same for settings or a list of them, and for all settings inside of them."""
    if isinstance(settings, (list, tuple)):  # also branches of steps
        for name, part in _numbered(key, settings):
            _check_part(report, name, part)
    if not isinstance(settings, dict):
        return
    names, kind = _KEYS.get(key.rpartition('.')[2]), None
    if names is None and settings.get('type') is not None:
        kind = class_of(settings)
        if kind is None:
            what, fix = f'there is no {settings["type"]!r}', 'Misspelt, or not in custom_imports?'
            report.error(f'{key}.type', what, fix)
            return
        names = _parameters(kind)
    of = f' of {getattr(kind, "__name__", kind)}' if kind else ''
    unknown = [n for n in settings if names is not None and n not in names | _REMOVED]
    for name in unknown:
        near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.7)
        fix = f'Did you mean {" or ".join(near)}?' if near else f'It has {", ".join(sorted(names))}'
        report.error(f'{key}.{name}', f'there is no such setting{of}', fix)
    # Others than torch's may need all parameters, or several processes.
    if str(getattr(kind, '__module__', '')).startswith('torch.optim.') and not unknown:
        given = {name: value for name, value in settings.items() if name != 'type'}
        try:
            kind([nn.Parameter(torch.zeros(1))], **given)
        except (TypeError, ValueError, RuntimeError) as error:
            report.error(key, f'{kind.__name__} cannot be built with {given} ({error})')
    if str(settings.get('type')) in ('Albu', 'Albumentations'):
        return  # the steps in them are another library's
    for name, part in settings.items():
        constructor = str(settings.get('constructor', 'Default')).rpartition('.')[2]
        reads_others = name == 'paramwise_cfg' and constructor not in _CONSTRUCTORS
        if (
            constructor in _CONSTRUCTORS[:2]
            and name == 'paramwise_cfg'
            and 'layer_decay_rate' in (part or ())
        ):
            what = f'is read by constructor={_CONSTRUCTORS[2]!r} only'
            report.error(f'{key}.paramwise_cfg.layer_decay_rate', what, 'Set it, or leave this out')
        holds_others = kind is None and names is None  # hooks by name, and the like
        if name == 'clip_grad' and not isinstance(part, (dict, type(None))):
            report.error(f'{key}.{name}', f'is {part!r}', f'Set it to dict(max_norm={part!r})')
        if (holds_others or name in _INNER or name in _KEYS) and not reads_others:
            _check_part(report, f'{key}.{name}', part)


def class_of(settings: dict) -> type | None:
    """The class that settings name, in the default scope; None where there is none."""
    kind = settings.get('type')
    if not isinstance(kind, str):
        return kind
    for registry in _REGISTRIES:
        scope = registry.switch_scope_and_registry(settings.get('_scope_'))
        with suppress(RuntimeError), scope as scoped:  # the name of a module with classes
            if (found := scoped.get(kind)) is not None:
                return found
    return None


def _parameters(kind: object) -> set[str] | None:
    """Names that a class or function takes; None where it may take any."""
    if inspect.isclass(kind) and issubclass(kind, CheckpointHook):  # passes them on when it saves
        return _arguments(kind.__init__, CheckpointHook.__init__, Runner.save_checkpoint)
    names: set[str] = set()
    for part in getattr(kind, '__mro__', [kind]):
        function = part if inspect.isfunction(part) else vars(part).get('__init__')
        if function is None:
            continue
        if not inspect.isfunction(function):  # not written in Python
            return None
        parameters = inspect.signature(function).parameters.values()
        more = {p.name for p in parameters if p.kind is p.VAR_KEYWORD}
        names |= {p.name for p in parameters} - more - {'self'}
        if not more:
            return names
        if not part.__module__.startswith(('mm', 'cyclemlp_mm.')):
            return None  # classes of the toolboxes pass **kwargs to the next one
    return None


def _check_watched(report: Report, cfg: Config, key: str, watched: object) -> None:
    """Report figures that no metric gives; metrics that are not known may give any."""
    evaluator = cfg.get('val_evaluator')
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator['metrics']
    known = set()  # figures, and 'prefix/' of metrics that may give any
    for _, metric in _numbered('', evaluator):
        kind = class_of(metric) if isinstance(metric, dict) else None
        prefix = kind and (metric.get('prefix') or getattr(kind, 'default_prefix', None))
        names = _figures(kind.__name__, metric) if kind else []
        if not names and not prefix:
            return
        known.update(f'{prefix}/{name}' if prefix else name for name in names or [''])
    for name in _listed(watched) if watched and watched != 'auto' and evaluator else ():
        if name not in known and f'{str(name).partition("/")[0]}/' not in known:
            near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5) or sorted(known)
            fix = f'It has {", ".join(near)}'
            report.error(key, f'is {name!r}, which the evaluation does not give', fix)


def _figures(kind: str, metric: dict) -> list[str]:
    """Names that a metric gives to its figures, without the prefix; [] where they are not known."""
    if kind == 'CheckedCocoMetric' and not metric.get('classwise'):  # adds classes' names
        items = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
        kinds, items = _listed(metric.get('metric', 'bbox')), metric.get('metric_items') or items
        return [f'{of}_{item}' for of in kinds for item in items]
    if kind == 'IoUMetric':
        known = dict(mIoU=['mIoU', 'mAcc'], mDice=['mDice', 'mAcc'])
        others = ['mFscore', 'mPrecision', 'mRecall']
        kinds = _listed(metric.get('iou_metrics', ['mIoU']))
        return ['aAcc', *(name for one in kinds for name in known.get(one, others))]
    if kind == 'Accuracy' and not metric.get('thrs'):
        return [f'top{k}' for k in _listed(metric.get('topk', 1))]
    return []


def _numbered(key: str, value: object) -> list[tuple[str, object]]:
    """Settings, or each of a list of them, with their keys."""
    if isinstance(value, (list, tuple)):
        return [(f'{key}[{i}]', part) for i, part in enumerate(value)]
    return [(key, value)] if value is not None else []


def _listed(value: object) -> Sequence:
    return value if isinstance(value, (list, tuple)) else [value]
