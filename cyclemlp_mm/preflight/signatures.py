"""Names in a config: types that exist, arguments that their classes take, figures to watch."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Iterable

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    Registry,
)
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from cyclemlp_mm.engine.config_sections import parts

from .findings import Report

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
#: The registry of the types at a path; of settings, or of a list of them.
TYPES = {
    'param_scheduler': PARAM_SCHEDULERS,
    'default_hooks.*': HOOKS,
    'custom_hooks': HOOKS,
    **{f'{phase}_cfg': LOOPS for phase in ('train', 'val', 'test')},
    **{f'{loader}.dataset': DATASETS for loader in _LOADERS},
    **{f'{loader}.sampler': DATA_SAMPLERS for loader in _LOADERS},
    **{f'{loader}.batch_sampler': DATA_SAMPLERS for loader in _LOADERS},
    'val_evaluator': METRICS,
    'test_evaluator': METRICS,
    'visualizer': VISUALIZERS,
    'visualizer.vis_backends': VISBACKENDS,
    'log_processor': LOG_PROCESSORS,
}
#: Registries whose settings have to name a type.
_NEED_TYPE = (HOOKS, DATASETS, TRANSFORMS)
#: Settings in settings: data sets in wrappers, their steps, steps of steps.
_INNER = {
    'dataset': DATASETS,
    'datasets': DATASETS,
    'pipeline': TRANSFORMS,
    'transforms': TRANSFORMS,
    'metrics': METRICS,
    'optimizer': OPTIMIZERS,
}
#: Steps whose own steps are another library's.
_FOREIGN = ('Albu', 'Albumentations')
#: What mmengine takes out of settings before it builds their class.
_MORE = {
    HOOKS: {'priority'},
    OPTIM_WRAPPERS: {'optimizer', 'constructor', 'paramwise_cfg'},
    PARAM_SCHEDULERS: {'convert_to_iter_based'},
}
#: What mmengine's own constructor of optimisers reads; others may read more.
_PARAMWISE = {
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
}
#: What mmengine reads of settings without a type.
_PLAIN = {
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'randomness': {*inspect.signature(Runner.set_randomness).parameters} - {'self'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'optim_wrapper.paramwise_cfg': _PARAMWISE,
    'optim_wrapper.clip_grad': {
        'type',
        *inspect.signature(nn.utils.clip_grad_norm_).parameters,
        *inspect.signature(nn.utils.clip_grad_value_).parameters,
    }
    - {'parameters'},
    **{
        loader: {
            *inspect.signature(DataLoader).parameters,
            'num_batch_per_epoch',
            'disable_subprocess_warning',
        }
        for loader in _LOADERS
    },
}
#: Figures of a metric, by its class: from its settings.
_FIGURES = {
    'CheckedCocoMetric': lambda metric: [
        f'{kind}_{item}'
        for kind in _listed(metric.get('metric', 'bbox'))
        for item in metric.get('metric_items')
        or ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    ],
    'IoUMetric': lambda metric: [
        'aAcc',
        *(
            name
            for kind in _listed(metric.get('iou_metrics', ['mIoU']))
            for name in dict(mIoU=['mIoU', 'mAcc'], mDice=['mDice', 'mAcc']).get(
                kind, ['mFscore', 'mPrecision', 'mRecall']
            )
        ),
    ],
    'Accuracy': lambda metric: (
        [f'top{k}' for k in _listed(metric.get('topk', 1))] if not metric.get('thrs') else None
    ),
}


def check_signatures(report: Report, cfg: Config, only: Iterable[str] = ('',)) -> None:
    """Find types that do not exist, and settings that nothing takes.

    Args:
        report (Report): Gets the findings.
        cfg (Config): As it goes to the Runner, its toolbox's scope being the default.
        only (Iterable[str]): Beginnings of the keys to look at. Defaults to all.
    """
    only = tuple(only)
    for path, registry in TYPES.items():
        for key, value in parts(cfg, path) if path.startswith(only) else ():
            check_types(report, key, value, registry)
    for path, names in _PLAIN.items():
        if names is _PARAMWISE and 'constructor' in (cfg.get('optim_wrapper') or {}):
            continue
        for key, value in parts(cfg, path) if path.startswith(only) else ():
            _check_names(report, key, value, names)


def check_watched(report: Report, cfg: Config) -> None:
    """Whether the evaluation has the figures that hooks and schedulers watch.

    Args:
        report (Report): Gets the findings.
        cfg (Config): As for :func:`check_signatures`.
    """
    hooks = [*parts(cfg, 'default_hooks.*'), *_numbered('custom_hooks', cfg.get('custom_hooks'))]
    for key, hook in hooks:
        kind = find_kind(hook, HOOKS) if isinstance(hook, dict) else None
        if inspect.isclass(kind) and issubclass(kind, CheckpointHook):
            _check_watched(report, cfg, f'{key}.save_best', hook.get('save_best'))
            _try_hook(report, key, kind, hook)
        elif inspect.isclass(kind) and issubclass(kind, EarlyStoppingHook):
            _check_watched(report, cfg, f'{key}.monitor', hook.get('monitor'))
            _try_hook(report, key, kind, hook)
    for key, scheduler in _numbered('param_scheduler', cfg.get('param_scheduler')):
        if isinstance(scheduler, dict) and 'Plateau' in str(scheduler.get('type')):
            _check_watched(report, cfg, f'{key}.monitor', scheduler.get('monitor', 'loss'))


def find_kind(settings: dict, registry: Registry) -> type | None:
    """The class that settings name, in the default scope; None where there is none."""
    kind = settings.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(settings.get('_scope_')) as scoped:
        return scoped.get(kind)


def check_types(report: Report, key: str, value: object, registry: Registry) -> None:
    """Find types that do not exist and settings that they do not take, in settings or a list."""
    for name, settings in _numbered(key, value):
        if isinstance(settings, (list, tuple)):  # branches of steps
            check_types(report, name, settings, registry)
        if not isinstance(settings, dict):
            continue
        if registry is METRICS and 'metrics' in settings:
            registry = EVALUATOR
        kind = find_kind({'type': _default_type(name, settings), **settings}, registry)
        if kind is not None:
            more = {'type', '_scope_', *_MORE.get(registry, ())}
            if 'type' not in settings:
                more.add('by_epoch')
            _check_names(report, name, settings, _parameters(kind), more)
        elif settings.get('type') is not None:
            report.error(
                f'{name}.type',
                f'there is no {settings["type"]!r}',
                'Is it misspelt, or missing in custom_imports?',
            )
        elif registry in _NEED_TYPE:
            report.error(
                f'{name}.type',
                'is missing, so that it is not known what these settings '
                f'are for: {dict(settings)}',
            )
        if str(settings.get('type')) not in _FOREIGN:
            for inner in [k for k in settings if k in _INNER]:
                if kind is not None or inner == 'metrics':
                    check_types(report, f'{name}.{inner}', settings[inner], _INNER[inner])


def _check_names(
    report: Report, key: str, settings: object, names: set[str] | None, more: set[str] = frozenset()
) -> None:
    if names is None or not isinstance(settings, dict):
        return
    names = names | more
    for name in [name for name in settings if name not in names]:
        near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.7)
        kind = settings.get('type')
        of = f' {getattr(kind, "__name__", kind)}' if kind else ''
        report.error(
            f'{key}.{name}',
            f'there is no such setting{" of" + of if of else ""}',
            f'Did you mean {" or ".join(near)}?'
            if near
            else f'There are {", ".join(sorted(names - more))}',
        )


def _default_type(key: str, settings: dict) -> str | None:
    """The type that mmengine takes where settings name none."""
    if key == 'train_cfg':
        return 'EpochBasedTrainLoop' if settings.get('by_epoch', True) else 'IterBasedTrainLoop'
    defaults = dict(val_cfg='ValLoop', test_cfg='TestLoop', visualizer='Visualizer')
    return dict(defaults, log_processor='LogProcessor').get(key)


def _parameters(kind: object) -> set[str] | None:
    """Names that a class or function takes; None where it takes any."""
    names: set[str] = set()
    callables = (
        [c.__dict__['__init__'] for c in kind.__mro__ if '__init__' in c.__dict__]
        if inspect.isclass(kind)
        else [kind]
    )
    for function in callables:
        try:
            parameters = inspect.signature(function).parameters.values()
            source = inspect.getsource(function)
        except (TypeError, ValueError, OSError):  # not written in Python
            return None
        more = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
        names |= {p.name for p in parameters} - {'self', *more}
        if function is CheckpointHook.__init__:  # hands them to the runner, at each checkpoint
            return names | {*inspect.signature(Runner.save_checkpoint).parameters}
        if not more:
            return names
        taken = _taken_of(source, more[0])
        if taken is None:
            return None
        names |= taken
    return None


def _taken_of(source: str, name: str) -> set[str] | None:
    """What an ``__init__`` takes out of its ``**name``, the rest going to the next class.

    None where more becomes of it than can be told from its text.
    """
    tree = ast.parse(textwrap.dedent(source))
    nodes = [*ast.walk(tree)]
    uses = {node for node in nodes if isinstance(node, ast.Name) and node.id == name}
    plain = {node for node in uses if isinstance(node.ctx, ast.Store)}
    taken, handed = set(), set()
    for node in nodes:
        if isinstance(node, ast.Dict):  # kwargs = dict(default, **kwargs) in other words
            plain |= {value for key, value in zip(node.keys, node.values) if key is None}
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            plain.add(node.value)
        elif isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            if re.match(r'super\(.*\)\.__init__$', function):
                handed |= {keyword.value for keyword in node.keywords if keyword.arg is None}
            elif function in (f'{name}.pop', f'{name}.get', f'{name}.setdefault'):
                plain.add(node.func.value)
                taken.add(getattr(node.args[0], 'value', None))
    if not uses:  # taken, and read by nobody
        return taken
    return taken if uses & handed and uses <= plain | handed else None


def _check_watched(report: Report, cfg: Config, key: str, watched: object) -> None:
    """Refuse figures that no metric gives; metrics that are not known may give any."""
    evaluator = cfg.get('val_evaluator')
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator['metrics']
    figures, prefixes = set(), set()
    for _, metric in _numbered('', evaluator):
        kind = find_kind(metric, METRICS) if isinstance(metric, dict) else None
        if kind is None:
            return
        prefix = metric.get('prefix') or getattr(kind, 'default_prefix', None)
        start = f'{prefix}/' if prefix else ''
        names = _FIGURES.get(kind.__name__, lambda metric: None)(metric)
        if metric.get('classwise'):  # mmdet adds figures by the classes' names
            names = None
        if names is None and not start:
            return
        figures |= {start + name for name in names or ()}
        prefixes |= set() if names else {start}
    for name in _listed(watched) if watched and watched != 'auto' else ():
        if name in figures or str(name).startswith(tuple(prefixes)) or not evaluator:
            continue
        near = difflib.get_close_matches(str(name), figures, n=2, cutoff=0.5) or sorted(figures)
        report.error(
            key,
            f'is {name!r}, which the evaluation does not give',
            f'It gives {", ".join([*near, *(p + "…" for p in sorted(prefixes))])}',
        )


def _try_hook(report: Report, key: str, kind: type, hook: dict) -> None:
    """Build a hook that does nothing but look at its settings."""
    if not kind.__module__.startswith(('mmengine.', 'cyclemlp_mm.')) or report.has(key):
        return
    try:
        kind(**{name: value for name, value in hook.items() if name not in ('type', 'priority')})
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        report.error(key, f'{kind.__name__} cannot be built ({str(error).splitlines()[0]})')


def _numbered(key: str, value: object) -> list[tuple[str, object]]:
    """Settings, or each of a list of them, with their keys."""
    if isinstance(value, (list, tuple)):
        return [(f'{key}[{i}]', part) for i, part in enumerate(value)]
    return [(key, value)] if value is not None else []


def _listed(value: object) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
