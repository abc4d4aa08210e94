"""Settings that mmengine ignores, that stop a training late, or in a message without their key."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable

import torch
from mmengine import registry as mm
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from cyclemlp_mm.checks import is_number
from cyclemlp_mm.engine.config_files import parts

from .findings import Report

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
#: mmengine needs all of a row, or none.
_TOGETHER = (
    ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)
#: Least value, largest value, and whether None is right, of keys with a whole number.
_NUMBERS = {
    **{f'{loader}.batch_size': (1, math.inf, False) for loader in _LOADERS},
    **{f'{loader}.num_workers': (0, math.inf, False) for loader in _LOADERS},
    **{
        f'train_cfg.{key}': (1, math.inf, False)
        for key in ('max_epochs', 'max_iters', 'val_interval')
    },
    'default_hooks.checkpoint.interval': (-1, math.inf, False),
    'default_hooks.logger.interval': (1, math.inf, False),
    'optim_wrapper.accumulative_counts': (1, math.inf, False),
    'max_non_finite': (1, math.inf, False),
    'randomness.seed': (0, 2**32 - 1, True),
}
#: The registry of the types at a path, which holds one dict or a list of them.
_TYPES = {
    'param_scheduler': mm.PARAM_SCHEDULERS,
    'default_hooks.*': mm.HOOKS,
    'custom_hooks': mm.HOOKS,
    **{f'{phase}_cfg': mm.LOOPS for phase in ('train', 'val', 'test')},
    **{f'{loader}.dataset': mm.DATASETS for loader in _LOADERS},
    **{f'{loader}.sampler': mm.DATA_SAMPLERS for loader in _LOADERS},
    **{f'{loader}.batch_sampler': mm.DATA_SAMPLERS for loader in _LOADERS},
    'val_evaluator': mm.METRICS,
    'test_evaluator': mm.METRICS,
    'visualizer': mm.VISUALIZERS,
    'visualizer.vis_backends': mm.VISBACKENDS,
    'log_processor': mm.LOG_PROCESSORS,
}
#: Dicts with a type inside of others: data sets in wrappers, their steps, steps of steps.
_INNER = {
    'dataset': mm.DATASETS,
    'datasets': mm.DATASETS,
    'pipeline': mm.TRANSFORMS,
    'transforms': mm.TRANSFORMS,
    'metrics': mm.METRICS,
    'optimizer': mm.OPTIMIZERS,
}
#: Keys that mmengine removes before it builds the class.
_REMOVED = {
    mm.HOOKS: {'priority'},
    mm.OPTIM_WRAPPERS: {'optimizer', 'constructor', 'paramwise_cfg'},
    mm.PARAM_SCHEDULERS: {'convert_to_iter_based'},
}


def _arguments(*functions: Callable) -> set[str]:
    return {name for function in functions for name in inspect.signature(function).parameters}


#: Keys that mmengine reads from dicts without a type; it ignores others in most of them.
_KEYS = {
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'randomness': _arguments(Runner.set_randomness) - {'self'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'optim_wrapper.paramwise_cfg': {
        'custom_keys',
        'bias_lr_mult',
        'bias_decay_mult',
        'norm_decay_mult',
        'dwconv_decay_mult',
        'flat_decay_mult',
        'dcn_offset_lr_mult',
        'bypass_duplicate',
    },
    'optim_wrapper.clip_grad': {
        'type',
        *_arguments(nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_),
    },
    **{
        loader: _arguments(DataLoader) | {'num_batch_per_epoch', 'disable_subprocess_warning'}
        for loader in _LOADERS
    },
}


def check_settings(report: Report, cfg: Config) -> None:
    """Compare settings with what mmengine takes, and build the optimiser for one number.

    Args:
        report (Report): Gets the findings.
        cfg (Config): As it goes to the Runner, its toolbox's scope being the default.
    """
    for keys in _TOGETHER:
        absent = ', '.join(key for key in keys if cfg.get(key) is None)
        if absent and keys is _TOGETHER[0]:
            report.error(absent, 'is None; a training needs it')
        elif absent and absent != ', '.join(keys):
            report.error(absent, f'is None, but not all of {", ".join(keys)} are')
    _check_numbers(report, cfg)
    for loader in _LOADERS:
        settings = cfg.get(loader) or {}
        if settings.get('num_workers') == 0 and settings.get('persistent_workers') is True:
            key = f'{loader}.persistent_workers'
            report.error(key, 'is True, but num_workers is 0', f'Give --cfg-options {key}=False')
    wrapper = cfg.get('optim_wrapper') or {}
    wrappers = {'': wrapper} if 'optimizer' in wrapper else wrapper  # or several, by name
    for name, inner in wrappers.items():
        if isinstance(inner, dict):
            _check_optimizer(report, f'optim_wrapper.{name}'.rstrip('.'), inner)
    if 'strategy' in cfg and 'runner_type' not in cfg:
        report.error(
            'strategy',
            'is read by runner_type="FlexibleRunner" only',
            'Set it, or leave the strategy out',
        )
    check_signatures(report, cfg)
    hooks = [*parts(cfg, 'default_hooks.*'), *_numbered('custom_hooks', cfg.get('custom_hooks'))]
    for key, hook in hooks:
        kind = _class_of(hook, mm.HOOKS) if isinstance(hook, dict) else None
        for watching, name in ((CheckpointHook, 'save_best'), (EarlyStoppingHook, 'monitor')):
            if inspect.isclass(kind) and issubclass(kind, watching):
                _check_watched(report, cfg, f'{key}.{name}', hook.get(name))
    for key, scheduler in _numbered('param_scheduler', cfg.get('param_scheduler')):
        if isinstance(scheduler, dict) and 'Plateau' in str(scheduler.get('type')):
            _check_watched(report, cfg, f'{key}.monitor', scheduler.get('monitor', 'loss'))


def _check_numbers(report: Report, cfg: Config) -> None:
    """Values that are not numbers, or out of range."""
    for path, (least, most, is_optional) in _NUMBERS.items():
        for key, value in parts(cfg, path):
            is_whole = is_number(value) and value == int(value)
            if path.startswith('train_cfg'):  # mmengine's loops also take 12.0
                value = int(value) if is_whole else value
            if (type(value) is int and least <= value <= most) or (is_optional and value is None):
                continue
            expected = f'a whole number from {least}' + f' to {most}' * (most < math.inf)
            if is_optional:
                expected += ', or None'
            report.error(key, f'is {value!r}, but must be {expected}')
    fraction = cfg.get('max_bad_fraction', 0)
    if not is_number(fraction) or not 0 <= fraction <= 1:
        report.error('max_bad_fraction', f'is {fraction!r}, but must be a number in [0, 1]')


def _check_optimizer(report: Report, key: str, wrapper: dict) -> None:
    before = len(report.findings)
    _check_types(report, key, wrapper, mm.OPTIM_WRAPPERS)
    optimizer = wrapper.get('optimizer')
    if not isinstance(optimizer, dict) or len(report.findings) > before:
        return
    kind = _class_of(optimizer, mm.OPTIMIZERS)
    # Others may need all parameters, or several processes.
    if not inspect.isclass(kind) or not kind.__module__.startswith('torch.optim'):
        return
    given = {name: value for name, value in optimizer.items() if name != 'type'}
    try:
        kind([nn.Parameter(torch.zeros(1))], **given)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f'{kind.__name__} cannot be built with {given} ({error})'
        report.error(f'{key}.optimizer', what)


def check_signatures(report: Report, cfg: Config, only: Iterable[str] = ('',)) -> None:
    """Find types that do not exist, and settings that no class takes.

    Args:
        report (Report): Gets the findings.
        cfg (Config): As it goes to the Runner, its toolbox's scope being the default.
        only (Iterable[str]): Beginnings of the keys to look at. Defaults to all.
    """
    only = tuple(only)
    for path, registry in _TYPES.items():
        for key, value in parts(cfg, path) if path.startswith(only) else ():
            _check_types(report, key, value, registry)
    for path, names in _KEYS.items():
        if path.endswith('paramwise_cfg') and 'constructor' in (cfg.get('optim_wrapper') or {}):
            continue  # other constructors read other keys
        for key, value in parts(cfg, path) if path.startswith(only) else ():
            _check_keys(report, key, value or {}, names)


def _check_types(report: Report, key: str, value: object, registry: mm.Registry) -> None:
    """Find types that do not exist and settings that they do not take, in a dict or a list."""
    for name, settings in _numbered(key, value):
        if isinstance(settings, (list, tuple)):  # branches of steps
            _check_types(report, name, settings, registry)
        if not isinstance(settings, dict):
            continue
        is_evaluator = registry is mm.METRICS and 'metrics' in settings
        kind = _class_of(settings, mm.EVALUATOR if is_evaluator else registry)
        if kind is not None:
            names = _parameters(kind)
            if names is not None:
                removed = {'type', '_scope_', *_REMOVED.get(registry, ())}
                _check_keys(report, name, settings, names | removed)
        elif settings.get('type') is not None:
            report.error(
                f'{name}.type',
                f'there is no {settings["type"]!r}',
                'Is it misspelt, or missing in custom_imports?',
            )
        if str(settings.get('type')) in ('Albu', 'Albumentations'):
            continue  # the steps in them are another library's
        for inner in _INNER.keys() & settings:
            if kind is not None or inner == 'metrics':
                _check_types(report, f'{name}.{inner}', settings[inner], _INNER[inner])


def _class_of(settings: dict, registry: mm.Registry) -> type | None:
    """The class that settings name, in the default scope; None where there is none."""
    kind = settings.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(settings.get('_scope_')) as scoped:
        return scoped.get(kind)


def _check_keys(report: Report, key: str, settings: dict, names: set[str]) -> None:
    kind = settings.get('type')
    of = f' of {getattr(kind, "__name__", kind)}' if kind else ''
    for name in [name for name in settings if name not in names]:
        near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.7)
        fix = f'Did you mean {" or ".join(near)}?' if near else f'It has {", ".join(sorted(names))}'
        report.error(f'{key}.{name}', f'there is no such setting{of}', fix)


def _parameters(kind: object) -> set[str] | None:
    """Names that a class or function takes; None where it may take any."""
    if inspect.isclass(kind) and issubclass(kind, CheckpointHook):  # passes them on when it saves
        return _arguments(kind.__init__, CheckpointHook.__init__, Runner.save_checkpoint)
    names: set[str] = set()
    for part in kind.__mro__ if inspect.isclass(kind) else [kind]:
        function = vars(part).get('__init__') if inspect.isclass(part) else part
        if function is not None:
            try:
                parameters = inspect.signature(function).parameters.values()
            except (TypeError, ValueError):  # not written in Python
                return None
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
    figures, prefixes = set(), set()
    for _, metric in _numbered('', evaluator):
        kind = _class_of(metric, mm.METRICS) if isinstance(metric, dict) else None
        if kind is None:
            return
        prefix = metric.get('prefix') or getattr(kind, 'default_prefix', None)
        start = f'{prefix}/' if prefix else ''
        names = _figures(kind.__name__, metric)
        if not names and not start:
            return
        figures.update(start + name for name in names)
        prefixes.update([start] if not names else [])
    for name in _listed(watched) if watched and watched != 'auto' and evaluator else ():
        if name not in figures and not str(name).startswith(tuple(prefixes)):
            near = difflib.get_close_matches(str(name), figures, n=2, cutoff=0.5) or sorted(figures)
            report.error(
                key,
                f'is {name!r}, which the evaluation does not give',
                f'It gives {", ".join([*near, *(p + "…" for p in sorted(prefixes))])}',
            )


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


def _listed(value: object) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
