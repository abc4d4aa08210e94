"""Configs by path or name, ``--cfg-options``, and the toolbox that a config needs."""

import copy
import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

from cyclemlp_mm import openmmlab
from cyclemlp_mm.errors import CodeError, MissingFileError, MissingToolboxError, UserError
from cyclemlp_mm.user_path import user_path

from .config_data import use_checked_coco

#: Toolbox by ``default_scope``, with the extra of this package that installs it.
EXTRAS = {'mmdet': 'det', 'mmseg': 'seg', 'mmpretrain': 'cls'}
#: Settings that a config may lack: arguments of the runners, and what else reads a config.
_KNOWN_KEYS = {
    *(key for runner in (Runner, FlexibleRunner) for key in inspect.signature(runner).parameters),
    # our tools
    *('image_max_value', 'max_bad_fraction', 'max_non_finite', 'unsafe_load'),
    # mmengine's runners and the toolboxes
    *('activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'sync_bn'),
    *('tta_model', 'tta_pipeline'),
}
#: Sections of mmdet 2 and mmseg 0.x, and what is read in their place.
_OLD_KEYS = {
    'data': 'train_dataloader, val_dataloader and test_dataloader',
    'optimizer_config': 'optim_wrapper',
    'lr_config': 'param_scheduler',
    **dict.fromkeys(('runner', 'total_epochs'), 'train_cfg'),
    'evaluation': 'val_evaluator and train_cfg.val_interval',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger and visualizer',
}
#: Where mmengine reads a config; its functions call the config's path ``filename``.
_MMENGINE = inspect.getfile(Config)
#: Packages whose code reads no keys of a config but those above.
_NOT_OWN = {'cyclemlp_mm', *EXTRAS}
#: Sections that are settings, as each default hook is; lists of settings; or either.
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_SETTINGS = (
    *('model', 'optim_wrapper', 'optim_wrapper.optimizer', 'default_hooks'),
    *('env_cfg', 'randomness', 'visualizer', 'log_processor', 'auto_scale_lr', 'train_cfg'),
    *('val_cfg', 'test_cfg', 'data_preprocessor', 'model_wrapper_cfg', 'strategy', 'tta_model'),
    *(name + part for name in _LOADERS for part in ('', '.dataset', '.sampler', '.batch_sampler')),
)
_LISTS = (
    *('custom_hooks', 'vis_backends', 'visualizer.vis_backends'),
    *(f'{name}.dataset.pipeline' for name in _LOADERS),
)
#: Texts that are no booleans, and count as true.
TRUTHS = ('true', 'false', 'yes', 'no', 'on', 'off')
_EITHER = ('param_scheduler', 'val_evaluator', 'test_evaluator')


def configs_dir() -> Path:
    """The folder of the shipped configs."""
    return tools_dir().parent / 'configs'


def tools_dir() -> Path:
    """The folder of the shipped tools: inside an installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / '.mim' / 'tools'
    return installed if installed.is_dir() else package.parent / 'tools'


def find_config(name: str) -> Path:
    """Path of a config, by its path, or by the name of a shipped one, with or without ``.py``.

    Also ``configs/NAME``, where there is no folder of that name: one may hold a changed copy.
    Raises MissingFileError, with near names, where there is none.
    """
    path = user_path(name)
    if path.is_file():
        return path
    stem = path.name.removesuffix('.py')
    shipped = configs_dir() / f'{stem}.py'
    is_name = path.parent == Path() or (path.parent == Path('configs') and not path.parent.is_dir())
    if is_name and shipped.is_file():
        return shipped
    names = sorted(p.stem for p in configs_dir().glob('*.py'))
    near = difflib.get_close_matches(stem, names, n=3)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise MissingFileError(
        f'config {name} is neither a file nor one of the {len(names)} shipped configs.{hint}'
    )


def load_config(name: str, cfg_options: dict | None = None) -> Config:
    """Read a config and merge ``--cfg-options`` into it.

    Args:
        name (str): See :func:`find_config`.
        cfg_options (dict, optional): Dotted keys to values.

    Raises:
        UserError: The config, or one that it builds on, is wrong, or an option does not fit it.
    """
    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: anything may go wrong in it
        raise _config_error(path, error) from error
    merge_options(cfg, cfg_options)
    return cfg


def merge_options(cfg: Config, options: dict | None) -> None:
    """Merge ``--cfg-options``, dotted keys to values, into a config; then check its sections.

    Raises UserError where an option does not fit the config, or nothing would read it.
    """
    if options:
        _check_keys(cfg, options)
        try:
            cfg.merge_from_dict(copy.deepcopy(options))  # mmengine takes _delete_ out of them
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f'--cfg-options {options} does not fit the config: {_first_line(error)}'
            ) from error
    check_sections(cfg)
    use_checked_coco(cfg)


def check_sections(cfg: Config) -> None:
    """Raise a UserError for what is read as settings, or a list of them, but is something else."""
    values = dict(walk(cfg.to_dict()))
    hooks = [key for key in values if re.fullmatch(r'default_hooks\.[^.]+', key)]
    for key in (*_SETTINGS, *hooks, *_LISTS, *_EITHER):
        value = values.get(key)
        is_list = isinstance(value, (list, tuple)) and all(isinstance(v, dict) for v in value)
        is_right = is_list if key in _LISTS else isinstance(value, dict)
        if value is None or is_right or (key in _EITHER and is_list):
            continue
        may_be_list = key in _LISTS or key in _EITHER
        expected = 'a list of settings, [dict(…)]' if may_be_list else 'settings, dict(…)'
        raise UserError(f'config {cfg.filename}: {key} is {value!r}, but must be {expected}')


def _config_error(path: Path, error: Exception) -> UserError:
    """What went wrong in a config or a base of it, with file and line; a CodeError in a module."""
    read = [  # files that mmengine was reading
        Path(frame.f_locals['filename']).absolute()
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == _MMENGINE and frame.f_locals.get('filename')
    ]
    config = next((file for file in reversed(read) if file.is_file()), path)  # a base may be gone
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    frames = traceback.extract_tb(cause.__traceback__)
    file = next((f.filename for f in reversed(frames) if f.name == '<module>'), str(config))
    lines = [frame.lineno for frame in frames if frame.filename == file]
    line = lines[-1] if lines else getattr(cause, 'lineno', None)
    if isinstance(cause, SyntaxError) and Path(cause.filename or '').is_file():
        file, line = cause.filename, cause.lineno
    where = f' ({file}, line {line})' if line else ''
    shown = path if config == path.absolute() else config
    kind = UserError if Path(file).absolute() in [*read, path.absolute()] else CodeError
    return kind(f'config {shown} cannot be read: {_first_line(cause)}{where}')


def _check_keys(cfg: Config, options: dict) -> None:
    """Reject dotted keys that mmengine would merge into the config, where nothing reads them.

    Their first part is in neither the config nor a runner, or is a variable whose value was already
    used; or an inner part is nearly a name in its place. All else may be new.
    """
    settings = cfg.to_dict()
    for key, value in options.items():
        first, *inner = key.split('.')
        if first not in _KNOWN_KEYS and first not in cfg:
            near = difflib.get_close_matches(first, _KNOWN_KEYS | set(cfg), n=3)
            places = near or [place for place, _ in walk(settings) if place.endswith(f'.{first}')]
            raise _unread(key, f'neither the config nor mmengine has {first!r}', places[:3], inner)
        if first not in _KNOWN_KEYS - {'data_preprocessor'} and _is_variable(cfg, first):
            wrong, places = f'{first!r} is a variable of the config that was used already', []
            if first in settings:
                used = settings.pop(first)
                places = [place for place, other in walk(settings) if _is_made_of(other, used)]
                # Those of the same name first: a small number stands for many things.
                places.sort(key=lambda place: first not in place)
            else:  # the model has its own
                wrong, places = 'the model has its own', [f'model.{first}']
            raise _unread(key, wrong, places[:4], inner)
        node = cfg.get(first)
        for part in inner:
            if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict):
                is_last = part is inner[-1]
                # A class reports arguments that it does not take, but for the nms of a test_cfg.
                may_be_new = is_last and 'type' in node and 'test_cfg' not in inner
                cutoff = 0.85 if is_last else 0.8
                near = difflib.get_close_matches(part, map(str, node), n=3, cutoff=cutoff)
                if part not in node and near and not may_be_new and 'custom_keys' not in inner:
                    raise _unread(key, f'there, the config does not have {part!r}', near)
                node = node.get(part)
            else:
                break  # merging reports it
        is_text = isinstance(value, str) and not isinstance(node, str)
        if is_text and (isinstance(node, bool) or value.lower() in TRUTHS):
            what = f'--cfg-options {key}={value}: the text {value!r} would count as true'
            raise UserError(f'{what}. Write True or False')


def walk(node: object, place: str = '') -> Iterator[tuple[str, object]]:
    """Dotted keys and values of settings, however deep."""
    if isinstance(node, (dict, list, tuple)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield f'{place}{key}', value
            yield from walk(value, f'{place}{key}.')


def _is_made_of(setting: object, value: object) -> bool:
    """Whether a setting equals a variable's value, or is a text that begins with it."""
    if isinstance(value, str) and isinstance(setting, str):
        return value != '' and setting.startswith(value)
    return type(setting) is type(value) and setting == value


def _unread(key: str, wrong: str, places: list[str], inner: Sequence[str] = ()) -> UserError:
    near = ' or '.join('.'.join([place, *inner]) for place in places)
    hint = f'Did you mean {near}?' if near else 'Write it into the config file'
    return UserError(f'--cfg-options {key}: {wrong}, so that it would change nothing. {hint}')


def _is_variable(cfg: Config, name: str) -> bool:
    """Whether a config's own text has used up a key, or no code of the user's could read it.

    A hook or model of the user may read ``runner.cfg`` for keys that mmengine does not have.
    """
    if name == 'data_preprocessor':  # a runner's argument, where the model has none of its own
        return name in cfg.get('model', {})
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    own = [imports] if isinstance(imports, str) else imports
    own = [module for module in own if module.split('.')[0] not in _NOT_OWN]
    return _is_used(cfg, name) or not own


def unread_names(cfg: Config) -> Iterator[tuple[str, str, bool]]:
    """Names at the top of a config that nothing reads, each with what is read in its place, and
    whether it is of an earlier version: else it is nearly that name."""
    settings = cfg.to_dict()
    for name, value in settings.items():
        near = difflib.get_close_matches(name, _KNOWN_KEYS, n=1, cutoff=0.9)
        read = near[0] if near else _OLD_KEYS.get(name)
        if name in _KNOWN_KEYS or not read or _is_used(cfg, name):
            continue
        others = {key: part for key, part in settings.items() if key != name}
        is_copy = isinstance(value, (dict, list)) and value  # a dumped config's variable
        if not (is_copy and any(_is_made_of(part, value) for _, part in walk(others))):
            yield name, read, not near


def _is_used(cfg: Config, name: str) -> bool:
    """Whether a config's own text reads one of its names."""
    lines = (line for line in cfg.text.splitlines() if not line.startswith('/'))  # files' names
    code = '\n'.join(line.split('#')[0] for line in lines)
    used = re.search(rf'(?:\b_base_\.|(?<![\w.\'"])){re.escape(name)}\b(?!\s*=[^=])', code)
    return used is not None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'


def require_toolbox(cfg: Config) -> str:
    """Import the toolbox that ``cfg.default_scope`` names, only this one.

    Returns:
        str: 'mmdet', 'mmseg' or 'mmpretrain'.

    Raises:
        UserError: The config names no supported toolbox.
        MissingToolboxError: It cannot be imported; the message says why and how to fix it.
    """
    scope = cfg.get('default_scope')
    if scope not in EXTRAS:
        raise UserError(
            f'the config says default_scope={scope!r}; expected one of {", ".join(EXTRAS)}'
        )
    try:
        importlib.import_module(f'{scope}.models')  # where imports break
    except Exception as error:  # a package that does not fit may raise anything
        raise MissingToolboxError(
            f'{scope}, which the config needs, cannot be imported ({type(error).__name__}: '
            f'{error}). tools/doctor.py finds the cause. Run `make setup` in a checkout, else '
            f'`pip install {openmmlab.requirement(EXTRAS[scope])}`'
        ) from error
    if scope == 'mmdet':
        importlib.import_module('cyclemlp_mm.datasets.checked_coco')  # classes that need mmdet
    return scope
