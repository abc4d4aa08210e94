"""Of which kind the parts of a config are: settings, or lists of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mmengine.config import Config

from cyclemlp_mm.errors import UserError

_PHASES = ('train', 'val', 'test')
_SETTINGS = (
    'model',
    'optim_wrapper',
    'optim_wrapper.optimizer',
    'default_hooks',
    'default_hooks.*',
    'env_cfg',
    'randomness',
    'visualizer',
    'log_processor',
    'auto_scale_lr',
    'data_preprocessor',
    'model_wrapper_cfg',
    'strategy',
    'tta_model',
    *(f'{phase}_cfg' for phase in _PHASES),
    *(
        f'{phase}_dataloader{part}'
        for phase in _PHASES
        for part in ('', '.dataset', '.sampler', '.batch_sampler')
    ),
)
_LISTS = (
    'custom_hooks',
    'vis_backends',
    'visualizer.vis_backends',
    *(f'{phase}_dataloader.dataset.pipeline' for phase in _PHASES),
)
_EITHER = ('param_scheduler', 'val_evaluator', 'test_evaluator')


class _Rule(NamedTuple):
    expected: str
    fits: Callable[[object], bool]


def _are_settings(value: object) -> bool:
    return isinstance(value, dict)


def _are_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(part, dict) for part in value)


_RULES = (
    (_SETTINGS, _Rule('settings, dict(…)', _are_settings)),
    (_LISTS, _Rule('a list of settings, [dict(…), …]', _are_list)),
    (
        _EITHER,
        _Rule(
            'a list of settings, [dict(…), …], or dict(…)',
            lambda value: _are_settings(value) or _are_list(value),
        ),
    ),
)


def check_sections(cfg: Config) -> None:
    """Refuse what mmengine and our tools would read as settings, but is something else.

    Args:
        cfg (Config): Any; what it lacks, or has as None, is not looked at.

    Raises:
        UserError: With the key, its value and what is expected of it.
    """
    for keys, rule in _RULES:
        for path in keys:
            for key, value in parts(cfg, path):
                if value is not None and not rule.fits(value):
                    raise UserError(
                        f'config {cfg.filename}: {key} is {value!r}, but must be {rule.expected}'
                    )


def parts(cfg: Config, path: str) -> Iterator[tuple[str, object]]:
    """Keys and values at a dotted path; ``*`` stands for all keys of settings.

    Args:
        cfg (Config): Any.
        path (str): Like 'default_hooks.*'. Where the config has nothing there, nothing is yielded.
    """
    nodes: list[tuple[str, object]] = [('', cfg)]
    for name in path.split('.'):
        nodes = [
            (f'{key}.{k}'.lstrip('.'), node[k])
            for key, node in nodes
            if isinstance(node, (dict, Config))
            for k in (node if name == '*' else [name])
            if k in node
        ]
    yield from nodes
