"""Of which kind the parts of a config are: settings, or lists of them."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config

from cyclemlp_mm.errors import UserError

_PHASES = ('train', 'val', 'test')
_LOADERS = [f'{phase}_dataloader' for phase in _PHASES]
_SETTINGS = (
    *('model', 'optim_wrapper', 'optim_wrapper.optimizer', 'default_hooks', 'default_hooks.*'),
    *('env_cfg', 'randomness', 'visualizer', 'log_processor', 'auto_scale_lr'),
    *('data_preprocessor', 'model_wrapper_cfg', 'strategy', 'tta_model'),
    *(f'{phase}_cfg' for phase in _PHASES),
    *(
        f'{loader}{part}'
        for loader in _LOADERS
        for part in ('', '.dataset', '.sampler', '.batch_sampler')
    ),
)
_LISTS = (
    *('custom_hooks', 'vis_backends', 'visualizer.vis_backends'),
    *(f'{loader}.dataset.pipeline' for loader in _LOADERS),
)
_EITHER = ('param_scheduler', 'val_evaluator', 'test_evaluator')


def check_sections(cfg: Config) -> None:
    """Raise for what mmengine and our tools would read as settings, but is something else.

    Args:
        cfg (Config): Any; what it lacks, or has as None, is not looked at.

    Raises:
        UserError: With the key, its value and what is expected of it.
    """
    for path in (*_SETTINGS, *_LISTS, *_EITHER):
        for key, value in parts(cfg, path):
            is_list = isinstance(value, (list, tuple)) and all(isinstance(v, dict) for v in value)
            is_right = isinstance(value, dict) if path not in _LISTS else is_list
            if value is None or is_right or (path in _EITHER and is_list):
                continue
            expected = 'settings, dict(…)' if path in _SETTINGS else 'a list of settings, [dict(…)]'
            raise UserError(f'config {cfg.filename}: {key} is {value!r}, but must be {expected}')


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
