"""Settings of a config that would end in a traceback which does not name their key."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from cyclemlp_mm.checks import is_number
from cyclemlp_mm.engine.config_sections import parts

from .findings import Report
from .signatures import check_signatures, check_types, check_watched, find_kind

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
#: mmengine wants all of a row, or none.
_TOGETHER = [
    (f'{phase}_dataloader', f'{phase}_cfg', f'{phase}_evaluator') for phase in ('val', 'test')
]


class _Rule(NamedTuple):
    expected: str
    fits: Callable[[object], bool]


def _whole(least: int, most: float = float('inf')) -> _Rule:
    said = f'a whole number from {least}' + (f' to {most}' if most < float('inf') else '')
    return _Rule(said, lambda value: type(value) is int and least <= value <= most)


# mmengine's loops also take 12.0.
_LENGTH = _Rule('a whole number from 1', lambda v: is_number(v) and v >= 1 and v == int(v))
_SEED = _whole(0, 2**32 - 1)

#: Keys that a training cannot do without.
_NEEDED = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
#: What is expected of a key where it is set.
_RULES = {
    **{f'{loader}.batch_size': _whole(1) for loader in _LOADERS},
    **{f'{loader}.num_workers': _whole(0) for loader in _LOADERS},
    **{f'train_cfg.{key}': _LENGTH for key in ('max_epochs', 'max_iters', 'val_interval')},
    'default_hooks.checkpoint.interval': _Rule('a whole number', lambda v: type(v) is int),
    'default_hooks.logger.interval': _whole(1),
    'optim_wrapper.accumulative_counts': _whole(1),
    'randomness.seed': _Rule(
        f'{_SEED.expected}, or None for a random one', lambda v: v is None or _SEED.fits(v)
    ),
    'max_bad_fraction': _Rule('a number in [0, 1]', lambda v: is_number(v) and 0 <= v <= 1),
    'max_non_finite': _whole(1),
}


def check_settings(report: Report, cfg: Config) -> None:
    """Compare settings with what mmengine takes, and build the optimiser for one number.

    Args:
        report (Report): Gets the findings.
        cfg (Config): As it goes to the Runner, its toolbox's scope being the default.
    """
    for key in _NEEDED:
        if cfg.get(key) is None:
            report.error(key, 'is None; a training needs it', 'Expected are settings, dict(…)')
    for path, rule in _RULES.items():
        for key, value in parts(cfg, path):
            if not rule.fits(value):
                report.error(key, f'is {value!r}, but must be {rule.expected}')
    for keys in _TOGETHER:
        absent = [key for key in keys if cfg.get(key) is None]
        if 0 < len(absent) < len(keys):
            report.error(
                absent[0],
                f'is None, but {" and ".join(k for k in keys if k not in absent)} are set',
                f'Set all of {", ".join(keys)}, or make all None',
            )
    for loader in _LOADERS:
        settings = cfg.get(loader) or {}
        if settings.get('num_workers') == 0 and settings.get('persistent_workers') is True:
            report.error(
                f'{loader}.persistent_workers',
                'is True, but num_workers is 0',
                f'Give --cfg-options {loader}.persistent_workers=False',
            )
    _check_optimisers(report, cfg.get('optim_wrapper'))
    if 'strategy' in cfg and 'runner_type' not in cfg:
        report.error(
            'strategy',
            'is read by runner_type="FlexibleRunner" only',
            'Set it, or leave the strategy out',
        )
    check_signatures(report, cfg)
    check_watched(report, cfg)


def _check_optimisers(report: Report, wrapper: object) -> None:
    if not isinstance(wrapper, dict):
        return
    wrappers = {'optim_wrapper': wrapper}
    if 'optimizer' not in wrapper:  # several, each with a wrapper of its own
        wrappers = {f'optim_wrapper.{k}': w for k, w in wrapper.items() if isinstance(w, dict)}
    for key, settings in wrappers.items():
        check_types(report, key, settings, OPTIM_WRAPPERS)
        optimizer = settings.get('optimizer')
        if not isinstance(optimizer, dict) or report.has(f'{key}.optimizer'):
            continue
        kind = find_kind(optimizer, OPTIMIZERS)
        # Others may need all parameters, or several processes.
        if not inspect.isclass(kind) or not kind.__module__.startswith('torch.optim'):
            continue
        given = {name: value for name, value in optimizer.items() if name != 'type'}
        try:
            kind([nn.Parameter(torch.zeros(1))], **given)
        except (TypeError, ValueError, RuntimeError) as error:
            report.error(
                f'{key}.optimizer', f'{kind.__name__} cannot be built with {dict(given)} ({error})'
            )
