"""``--resume``: which checkpoint is taken, and what it must hold.

mmengine continues with the optimiser and schedule of the checkpoint, whatever the config says.
"""

import inspect
import itertools
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapperDict
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint
from torch.optim import Optimizer

from cyclemlp_mm.engine.config_data import meta_of, take_class_order, trained_classes
from cyclemlp_mm.errors import CheckpointError, UserError, some
from cyclemlp_mm.user_path import user_path
from cyclemlp_mm.weights import (
    is_unsafe_loading,
    keep_for_loading,
    read_before_loading,
    read_checkpoint,
)

_COUNTS = ('iter', 'epoch')
_NEW = 'start a new training from its weights: --cfg-options load_from=FILE, without --resume'
_OTHER = f'Resume another one, or {_NEW}'
#: Parts of a checkpoint by a word of mmengine's line that reads them back.
_READ_BY = dict(param_schedulers='sched', optimizer='optim', message_hub='message_hub')
#: Parts by the code that uses them first. A scheduler wraps the step of its optimiser.
_USED_IN = {
    'torch/optim/': 'optimizer',
    'mmengine/optim/scheduler/': 'param_schedulers',
    'mmengine/hooks/runtime_info_hook.py': 'optimizer',  # logs the learning rate
}
#: Types of settings that are compared.
_SIMPLE = (int, float, str, list, type(None))


class FoundCheckpoint(NamedTuple):
    """What to resume from."""

    path: Path | None  # None where the training has not saved one yet
    notes: list[str]  # files that cannot be read, each with the reason, and the like
    content: dict | None = None


def is_resumed(runner: Runner) -> bool:
    """Whether a runner continues a training."""
    return bool(getattr(runner, '_resume', False))


def loaded_from(runner: Runner) -> str:
    """The file that a runner loads or resumes."""
    return str(runner._load_from or find_latest_checkpoint(runner.work_dir))


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
            return [f'{folder} has no checkpoint yet: training starts at the beginning']
        notes.append(f'resuming from {path}')
    else:
        path = source if '://' in source else user_path(source)
        content = read_before_loading(str(path))
    cfg.resume = True
    cfg.load_from = str(path)
    notes += take_class_order(cfg, trained_classes(content), cfg.load_from)
    return notes + _take_seed(cfg, content)


def _take_seed(cfg: Config, content: object) -> list[str]:
    """The order of the data follows from the seed, and is made before mmengine reads the file."""
    seed = meta_of(content).get('seed')
    if type(seed) is not int:
        return []
    if not 0 <= seed < 2**32:
        raise CheckpointError(
            f'checkpoint {cfg.load_from}: meta.seed is {seed!r:.50}, but must be 0 to 4294967295'
        )
    asked = (cfg.get('randomness') or {}).get('seed')
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    if asked in (None, seed):
        return []
    return [f'{cfg.load_from} goes on with its randomness.seed={seed}, not with {asked}']


def checkpoint_folder(cfg: Config) -> Path:
    """Where a training's checkpoint hook saves; raises UserError for a remote store."""
    work_dir = str(cfg.work_dir)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    out_dir = str(hook.get('out_dir') or work_dir)
    if '://' in out_dir:
        raise UserError(
            f'--resume cannot look into {out_dir} of default_hooks.checkpoint.out_dir: give '
            '--resume FILE'
        )
    return Path(work_dir) if out_dir == work_dir else Path(out_dir) / Path(work_dir).name


def find_newest(folder: str | Path, pointer: Path | None = None) -> FoundCheckpoint:
    """The checkpoint of a folder that is furthest in its training, of those that can be read.

    The file itself says how far it is, not its name or date. ``last_checkpoint`` is a hint: files
    that are further than the one it names, but were saved before it, are of an earlier training in
    the same folder and come last. Every byte of the file is read and checked before it is used.
    Raises CheckpointError where there are some, but none can be read.
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
        except CheckpointError as error:
            broken.append(str(error))
            continue
        if (meta := meta_of(content)) and 'optimizer' in content:  # else weights alone
            counts = [n if type(n) is int else -1 for n in map(meta.get, _COUNTS)]
            states[path] = (*counts, str(meta.get('time', '')))  # %Y%m%d_%H%M%S, when it was saved
            if unsafe and states[path] == max(states.values()):
                keep_for_loading(str(path), content)
    order = sorted(states, key=states.get, reverse=True)
    name = _pointed_name(pointer or folder / 'last_checkpoint')
    named = next((states[path] for path in order if path.name == name), None)
    if named:
        order.sort(key=lambda path: states[path][0] > named[0] and states[path][2] < named[2])
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
            f'--resume: none of the {len(broken)} checkpoints in {folder} can be read; the last '
            f'one: {broken[-1]}. To start again, use another --work-dir, or move them away'
        )
    return FoundCheckpoint(None, [])


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


def build_runner(cfg: Config, start_from: str | None) -> Runner:
    """Build a training's runner; the config in its work dir starts again, from ``start_from``."""
    kind = cfg.get('runner_type', 'Runner')
    runner = (RUNNERS.get(kind) if isinstance(kind, str) else kind).from_cfg(cfg)
    if cfg.get('resume'):
        runner.cfg.update(resume=False, load_from=start_from)
        runner.dump_config()
    return runner


def run_training(runner: Runner) -> None:
    """Train; an error of a resumed checkpoint names the file and its damaged part."""
    start = {}
    if is_resumed(runner) and runner._load_from:
        start = meta_of(read_before_loading(loaded_from(runner)))
    try:
        runner.train()
    except (UserError, OSError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # the state of any library may be wrong in any way
        part = _damaged_part(error) if is_resumed(runner) else None
        if part is None:
            raise
        unit = 'epoch' if isinstance(runner.train_loop, EpochBasedTrainLoop) else 'iter'
        # After an epoch or an iteration every part was used: the error has another cause.
        if type(start.get(unit)) is int and getattr(runner, unit) > start[unit]:
            raise
        raise CheckpointError(
            f'checkpoint {loaded_from(runner)} cannot be resumed: its part {part!r} makes no sense '
            f'({type(error).__name__}: {error}). {_OTHER}'
        ) from error


def _damaged_part(error: Exception) -> str | None:
    """The part of a checkpoint that an error comes from, when it is read back or first used."""
    frames, cause = [], error
    while cause is not None:  # mmengine's call_hook raises a TypeError again
        frames += traceback.extract_tb(cause.__traceback__)
        cause = cause.__context__
    if any(frame.name == 'resume' for frame in frames):
        lines = [frame.line or '' for frame in frames]
        return next((p for line in lines for p, word in _READ_BY.items() if word in line), 'meta')
    files = ' '.join(Path(frame.filename).as_posix() for frame in frames)
    used = (part for place, part in _USED_IN.items() if place in files)
    return None if 'CUDA' in str(error) else next(used, None)


def check_resumable(checkpoint: dict, source: str) -> None:
    """Raise a CheckpointError where a checkpoint lacks what a training needs to continue."""
    hub = checkpoint.get('message_hub')
    values = dict(resumed_keys=bool, log_scalars=HistoryBuffer, runtime_info=object)
    wrong = ''
    if any(type(n) is not int or n < 0 for n in map(meta_of(checkpoint).get, _COUNTS)) or not (
        isinstance(hub, dict) and all(isinstance(hub.get(part), dict) for part in values)
    ):
        wrong = 'it does not say how far its training was'
    elif 'optimizer' not in checkpoint:  # its steps, momenta and learning rate would begin again
        wrong = 'it lacks the state of the optimiser, as best_*.pth do'
    else:
        for part, kind in values.items():
            for key, value in hub[part].items():
                if not isinstance(value, kind):
                    wrong = f'message_hub.{part}.{key} is a {type(value).__name__}'
    if wrong:
        raise CheckpointError(f'checkpoint {source} cannot be resumed: {wrong}. {_OTHER}')


def compare_settings(runner: Runner, checkpoint: dict, source: str) -> None:
    """Warn where a resumed training will not follow the optimiser and schedule of its config.

    Raises CheckpointError where the state is of another optimiser, of other parameters, or of an
    average of weights that the config does not have.
    """
    if 'ema_state_dict' in checkpoint and not any(isinstance(h, EMAHook) for h in runner.hooks):
        raise CheckpointError(
            f'checkpoint {source} has averaged weights next to those that are trained, and '
            f'custom_hooks of the config has no EMAHook: add it, or {_NEW}'
        )
    changes, wrapper, state = [], runner.optim_wrapper, checkpoint['optimizer']
    several = isinstance(wrapper, OptimWrapperDict)
    for name, part in wrapper.items() if several else [('', wrapper)]:
        groups = (state[name] if several else state)['param_groups']
        _check_groups(part.optimizer, groups, source)
        for own, saved in zip(part.optimizer.param_groups, groups):
            changes += _differences(_at_start(own), _at_start(saved))
    schedules, states = (
        list(itertools.chain(*part.values())) if isinstance(part, dict) else part
        for part in (runner.param_schedulers, checkpoint.get('param_schedulers'))
    )
    if schedules is not None and states is not None:
        for i, (schedule, state) in enumerate(zip(schedules, states)):
            own = _arguments(schedule)
            saved = {key: state.get(key, 'none') for key in own}  # of a param_scheduler
            changes += _differences(own, saved, f'param_schedulers.{i}.')
        if len(schedules) != len(states):
            changes.append(f'{len(states)} param_schedulers (config: {len(schedules)})')
    if changes:
        runner.logger.warning(
            f'{source} goes on with its own settings, not with those of the config: '
            f"{some(list(dict.fromkeys(changes)), 6)}. To train with the config's, {_NEW}"
        )


def _check_groups(optimizer: Optimizer, groups: list[dict], source: str) -> None:
    """Raise where the groups of parameters in a state are not those of this optimiser."""
    saved = [len(group['params']) for group in groups]
    own = [len(group['params']) for group in optimizer.param_groups]
    kind, wrong = type(optimizer).__name__, ''
    if saved != own:
        wrong = f'has {len(saved)} groups of {sum(saved)} parameters, but {kind} of the config has '
        wrong += f'{len(own)} groups of {sum(own)}'
    # Flags and None are what a newer version of the same optimiser adds itself.
    numbers = [k for k, v in optimizer.defaults.items() if v is not None and type(v) is not bool]
    missing = [key for group in groups for key in numbers if key not in group]
    if missing and not wrong:
        wrong = f'is of another optimiser than {kind} of the config: it lacks {missing[0]!r}'
    if wrong:
        raise CheckpointError(
            f'checkpoint {source}: optimizer {wrong}. Resume with the optim_wrapper and model that '
            f'it was trained with, or {_NEW}'
        )


def _at_start(group: dict) -> dict:
    """Settings of a group of parameters before schedules changed them."""
    changed = ('params', 'betas') if 'initial_momentum' in group else ('params',)
    names = [key for key in group if key not in changed and not key.startswith('initial_')]
    return {key: group.get(f'initial_{key}', group[key]) for key in names}


def _arguments(schedule: object) -> dict:
    kinds = type(schedule).__mro__[:-1]  # each may take arguments of its own
    names = {name for kind in kinds for name in inspect.signature(kind).parameters}
    return {key: vars(schedule)[key] for key in names if key in vars(schedule)}


def _differences(own: dict, saved: dict, prefix: str = '') -> Iterator[str]:
    for key in sorted(own.keys() & saved.keys() - {'last_step', 'verbose'}):
        was, now = _listed(saved[key]), _listed(own[key])
        if isinstance(was, _SIMPLE) and isinstance(now, _SIMPLE) and was != now:
            yield f'{prefix}{key} {str(was)[:60]} (config: {str(now)[:60]})'


def _listed(value: object) -> object:
    if isinstance(value, Counter):  # milestones
        return sorted(value.elements())
    return list(value) if isinstance(value, tuple) else value
