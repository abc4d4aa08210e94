"""Where configs and tools are found: by path, or by the name of one that ships with us."""

import difflib
import inspect
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

from cyclemlp_mm.errors import MissingFileError, UserError

from .config_sections import check_sections

_PACKAGE = Path(__file__).resolve().parents[1]
#: Settings that a config may lack and that are read from it: by our tools, then by mmengine's
#: runners and the toolboxes, beside the arguments of the runners.
_MORE_KEYS = {
    'max_bad_fraction', 'max_non_finite', 'unsafe_load', 'runner_type',
    'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip


def configs_dir() -> Path:
    """The folder of the shipped configs."""
    return _shipped('configs')


def tools_dir() -> Path:
    """The folder of the shipped tools."""
    return _shipped('tools')


def _shipped(name: str) -> Path:
    """A top-level folder: inside an installed package, or beside it in a checkout."""
    installed = _PACKAGE / '.mim' / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def find_config(name: str) -> Path:
    """Path of a config.

    Args:
        name (str): A path, or the name of a shipped config, with or without ``.py``; also
            ``configs/NAME`` where there is no folder of that name.

    Raises:
        MissingFileError: Neither; suggests near names.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    stem = path.name.removesuffix('.py')
    shipped = configs_dir() / f'{stem}.py'
    if shipped.is_file():
        # A folder that was named may hold a changed copy: then the shipped one is not meant.
        if path.parent == Path() or (path.parent == Path('configs') and not path.parent.is_dir()):
            return shipped
        raise MissingFileError(
            f'there is no config {name}. To take the shipped one of that name, leave the folder '
            f'out: {stem}'
        )
    names = sorted(p.stem for p in configs_dir().glob('*.py'))
    near = difflib.get_close_matches(stem, names, n=3)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise MissingFileError(
        f'config {name} is neither a file nor one of the {len(names)} shipped configs.{hint}'
    )


def load_config(name: str, cfg_options: 'dict | None' = None) -> Config:
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
        raise UserError(f'config {path} cannot be read: {_first_line(error)}') from error
    if cfg_options:
        _check_keys(cfg, cfg_options)
        try:
            cfg.merge_from_dict(cfg_options)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f'--cfg-options {cfg_options} does not fit the config: {_first_line(error)}'
            ) from error
    check_sections(cfg)
    return cfg


def _check_keys(cfg: Config, options: 'dict') -> None:
    """Refuse dotted keys that mmengine would merge into the config, where nothing reads them.

    Those whose first part neither the config nor a runner knows, and those with a part, but the
    last, that is nearly a name in its place. All else may be new.

    Raises:
        UserError: With the names that are near.
    """
    known = set(cfg) | _MORE_KEYS
    for runner in (Runner, FlexibleRunner):
        known |= set(inspect.signature(runner).parameters)
    for key in options:
        parts = key.split('.')
        near = difflib.get_close_matches(parts[0], known, n=3)
        if parts[0] not in known:
            lacking = 'neither the config nor mmengine has'
            raise UserError(_unknown_key(key, parts[0], near, lacking))
        node = cfg.get(parts[0])
        for part in parts[1:-1]:
            if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
                continue
            if not isinstance(node, dict):
                break  # merging says what is wrong
            near = difflib.get_close_matches(part, map(str, node), n=3, cutoff=0.8)
            if part not in node and near:
                raise UserError(_unknown_key(key, part, near, 'there, the config does not have'))
            node = node.get(part)


def _unknown_key(key: str, part: str, near: 'list[str]', lacking: str) -> str:
    hint = f'Did you mean {" or ".join(near)}?' if near else 'One of your own goes into the config'
    return f'--cfg-options {key}: {lacking} {part!r}, so that it would change nothing. {hint}'


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'
