"""``--resume``: the newest checkpoint of a work dir that can be read, or the one that is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from cyclemlp_mm.engine.config_data import take_class_order, trained_classes
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.user_path import user_path
from cyclemlp_mm.weights import (
    is_unsafe_loading,
    keep_for_loading,
    read_before_loading,
    read_checkpoint,
)

from .resumed import check_resumable


class FoundCheckpoint(NamedTuple):
    """What to resume from."""

    path: Path | None  # None where the training has not saved one yet
    notes: list[str]  # files that cannot be read, each with the reason, and the like
    content: dict | None = None


def resume_training(cfg: Config, source: str) -> list[str]:
    """Set ``cfg`` to continue from a checkpoint, with the seed that it was trained with.

    Args:
        cfg (Config): Changed in place.
        source (str): A checkpoint, or 'auto' for the newest one of ``cfg.work_dir``.

    Returns:
        list[str]: What the user should know.

    Raises:
        CheckpointError: 'auto', and there are checkpoints, but none can be read, or the seed in the
            file is not one.
        MissingFileError: The named checkpoint does not exist.
    """
    notes = []
    if source == 'auto':
        folder = checkpoint_folder(cfg)
        path, notes, content = find_newest(folder, Path(cfg.work_dir) / 'last_checkpoint')
        if path is None:
            return [*notes, f'{folder} has no checkpoint yet: training starts at the beginning']
        notes.append(f'resuming from {path}')
    else:
        path = source if '://' in source else user_path(source)
        content = read_before_loading(str(path))
    cfg.resume = True
    cfg.load_from = str(path)
    notes += take_class_order(cfg, trained_classes(content), cfg.load_from)
    return notes + _take_seed(cfg, content)


def checkpoint_folder(cfg: Config) -> Path:
    """Where a training's checkpoint hook saves.

    Raises:
        UserError: Not on a local disk.
    """
    work_dir = str(cfg.work_dir)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    out_dir = str(hook.get('out_dir') or work_dir)
    if '://' in out_dir:
        raise UserError(
            f'--resume without a file cannot look into {out_dir} of '
            'default_hooks.checkpoint.out_dir: give --resume FILE'
        )
    return Path(work_dir) if out_dir == work_dir else Path(out_dir) / Path(work_dir).name


def find_newest(folder: str | Path, pointer: Path | None = None) -> FoundCheckpoint:
    """The checkpoint of a folder that is furthest in its training, of those that can be read.

    The file itself says how far it is, not its name or date. ``last_checkpoint`` is a hint: files
    that are further than the one it names, but were saved before it, are of an earlier training in
    the same folder and come last. Every byte of the file is read and checked before it is used.

    Args:
        folder (str | Path): Where the checkpoints are.
        pointer (Path, optional): The file ``last_checkpoint``. Defaults to the one in ``folder``.

    Raises:
        CheckpointError: There are some, but none can be read.
    """
    folder, broken, notes, states = Path(folder), [], [], {}
    for path in sorted(folder.glob('*.pth')):
        if path.name.startswith(('.', 'best_')):  # half written; weights without a state
            continue
        if not path.is_file():  # a pipe would hang
            broken.append(f'{path} is not a file')
            continue
        try:
            # The tensors of a file that safe loading refuses cannot be left out: it is unpickled,
            # and once is enough. The content of the one that is furthest is kept.
            unsafe = is_unsafe_loading()
            content = read_checkpoint(path, tensors=unsafe)
            states[path] = _progress(content)
            if unsafe and states[path] == max(filter(None, states.values()), default=0):
                keep_for_loading(str(path), content)
        except CheckpointError as error:
            broken.append(str(error))
    order = sorted((p for p in states if states[p] is not None), key=states.get, reverse=True)
    name = _pointed_name(pointer or folder / 'last_checkpoint')
    named = next((states[path] for path in order if path.name == name), None)
    if named is not None:
        order.sort(
            key=lambda p: states[p].iteration > named.iteration and states[p].time < named.time
        )
    elif order and name is not None:
        notes.append(f'last_checkpoint names no checkpoint of {folder}: it is not used')
    for path in order:
        try:
            content = read_before_loading(str(path))
            check_resumable(content, str(path))
        except CheckpointError as error:
            broken.append(str(error))
            continue
        notes += [f'passed over a broken checkpoint: {error}' for error in broken]
        return FoundCheckpoint(path, notes, content)
    if broken:
        raise CheckpointError(
            f'--resume: none of the {len(broken)} checkpoints in {folder} can be read; '
            f'the last one: {broken[-1]}. '
            'To start again, use another --work-dir, or move them away'
        )
    return FoundCheckpoint(None, [])


class _Progress(NamedTuple):
    iteration: int
    epoch: int
    time: str  # %Y%m%d_%H%M%S, when it was saved


def _progress(content: object) -> _Progress | None:
    """How far a checkpoint is; None for weights alone."""
    meta = content.get('meta') if isinstance(content, dict) else None
    if not isinstance(meta, dict) or 'optimizer' not in content:
        return None
    iteration, epoch = (n if type(n) is int else -1 for n in map(meta.get, ('iter', 'epoch')))
    return _Progress(iteration, epoch, str(meta.get('time', '')))


def _pointed_name(pointer: Path) -> str | None:
    """The file name in ``last_checkpoint``; the folder in it may be another machine's."""
    try:
        if not pointer.is_file():  # a pipe would hang
            return None
        with pointer.open('rb') as file:
            text = file.read(5000).decode(errors='replace')
    except OSError:
        return None
    return re.split(r'[/\\]', text.strip('\ufeff\0 \t\r\n'))[-1]


def _take_seed(cfg: Config, content: object) -> list[str]:
    """The order of the data follows from the seed, and is made before mmengine reads the file."""
    meta = content.get('meta') if isinstance(content, dict) else None
    seed = meta.get('seed') if isinstance(meta, dict) else None
    if type(seed) is not int:
        return []
    if not 0 <= seed < 2**32:
        raise CheckpointError(
            f'checkpoint {cfg.load_from}: meta.seed is {seed!r:.50}, but must be 0 to 4294967295'
        )
    randomness = dict(cfg.get('randomness') or {})
    asked = randomness.get('seed')
    cfg.randomness = dict(randomness, seed=seed)
    if asked in (None, seed):
        return []
    return [
        f'{cfg.load_from} was trained with randomness.seed={seed}; it goes on with that one, not '
        f'with {asked} of the config'
    ]
