"""What a checkpoint must hold to be resumed, checked before mmengine takes it over.

mmengine continues with the optimiser and schedule of the checkpoint, whatever the config says.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint
from torch.optim import Optimizer

from cyclemlp_mm.errors import CheckpointError, UserError

_NEW = 'start a new training from its weights: --cfg-options load_from=FILE, without --resume'
#: Where the parts of a checkpoint are used. A scheduler wraps the step of its optimiser.
_USED_IN = {
    'torch/optim/': 'optimizer',
    'mmengine/optim/scheduler/': 'param_schedulers',
    'mmengine/hooks/runtime_info_hook.py': 'optimizer',  # logs the learning rate
}
_SIMPLE = (int, float, str, tuple, list, Counter, type(None))


def is_resumed(runner: Runner) -> bool:
    """Whether a runner continues a training."""
    return bool(getattr(runner, '_resume', False))


def loaded_from(runner: Runner) -> str:
    """The file that a runner loads or resumes."""
    return str(runner._load_from or find_latest_checkpoint(runner.work_dir))


def build_runner(cfg: Config, start_from: str | None) -> Runner:
    """Build a training's runner; the config in its work dir starts from the beginning again.

    Args:
        cfg (Config): Of the training, whether it is resumed or not.
        start_from (str, optional): ``load_from`` of the recorded config of a resumed training.
    """
    kind = cfg.get('runner_type', 'Runner')
    runner = guard_resume(RUNNERS.get(kind) if isinstance(kind, str) else kind).from_cfg(cfg)
    if cfg.get('resume'):
        runner.cfg.update(resume=False, load_from=start_from)
        runner.dump_config()
    return runner


def guard_resume(kind: type) -> type:
    """A subclass of a runner whose errors name the resumed file and its damaged part."""

    class GuardedRunner(kind):
        resumed_at = None

        def resume(self, *args, **kwargs) -> None:
            super().resume(*args, **kwargs)
            self.resumed_at = self._progress()

        def _progress(self) -> int:
            by_epoch = isinstance(self.train_loop, EpochBasedTrainLoop)
            return self.epoch if by_epoch else self.iter

        def train(self) -> object:
            try:
                return super().train()
            except (UserError, OSError, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:  # the state of any library may be wrong in any way
                part = _damaged_part(error)
                # After an epoch or an iteration every part was used: the error has another cause.
                is_late = self.resumed_at is not None and self._progress() > self.resumed_at
                if part is None or is_late or not is_resumed(self):
                    raise
                raise CheckpointError(
                    f'checkpoint {loaded_from(self)} cannot be resumed: its part {part!r} makes no '
                    f'sense ({type(error).__name__}: {error}). Resume another one, or {_NEW}'
                ) from error

    return GuardedRunner


def _damaged_part(error: Exception) -> str | None:
    """The part of a checkpoint that an error comes from, when it is read back or first used."""
    frames, cause = [], error
    while cause is not None:  # mmengine's call_hook raises a TypeError again
        frames += traceback.extract_tb(cause.__traceback__)
        cause = cause.__context__
    if not any(frame.name == 'resume' for frame in frames):
        files = ' '.join(Path(frame.filename).as_posix() for frame in frames)
        parts = [part for place, part in _USED_IN.items() if place in files]
        return parts[0] if parts and 'CUDA' not in str(error) else None
    words = dict(param_schedulers='sched', optimizer='optim', message_hub='message_hub')
    for frame in frames:
        for part, word in words.items():
            if word in (frame.line or ''):
                return part
    return 'meta'


def check_resumable(checkpoint: dict, source: str) -> None:
    """Raise a CheckpointError where a checkpoint lacks what a training needs to continue."""
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    counts = [meta.get(name) for name in ('epoch', 'iter')] if isinstance(meta, dict) else [None]
    parts = ('log_scalars', 'runtime_info', 'resumed_keys')
    wrong = ''
    if any(type(count) is not int or count < 0 for count in counts) or not (
        isinstance(hub, dict) and all(isinstance(hub.get(part), dict) for part in parts)
    ):
        wrong = 'it does not say how far its training was'
    elif 'optimizer' not in checkpoint:  # its steps, momenta and learning rate would begin again
        wrong = (
            'it holds weights without the state of the optimiser, as best_*.pth do. Resume '
            'epoch_*.pth or iter_*.pth'
        )
    else:
        for part, kind in (('resumed_keys', bool), ('log_scalars', HistoryBuffer)):
            for key, value in hub[part].items():
                if not isinstance(value, kind):
                    wrong = f'message_hub.{part}.{key} is a {type(value).__name__}'
    if wrong:
        raise CheckpointError(
            f'checkpoint {source} cannot be resumed: {wrong}. To start a new training from its '
            'weights, use --cfg-options load_from=FILE'
        )


def compare_settings(runner: Runner, checkpoint: dict, source: str) -> None:
    """Warn where a resumed training will not follow the optimiser and schedule of its config.

    Args:
        runner (Runner): Before it takes over the checkpoint's.
        checkpoint (dict): With ``optimizer`` and, if it has any, ``param_schedulers``.
        source (str): The file.

    Raises:
        CheckpointError: The state is of another optimiser, or of other parameters.
    """
    wrapper, state = runner.optim_wrapper, checkpoint.get('optimizer')
    if not isinstance(wrapper, OptimWrapper):
        return
    parts = [('optimizer', wrapper, state)]
    if isinstance(wrapper, OptimWrapperDict):
        states = state if isinstance(state, dict) else {}
        parts = [(f'optimizer.{name}', part, states.get(name)) for name, part in wrapper.items()]
    changes = []
    for name, part, state in parts:
        groups = _groups(part.optimizer, state, f'checkpoint {source}: {name}')
        for ours, theirs in zip(part.optimizer.param_groups, groups):
            changes += _changed_settings(ours, theirs)
    saved = checkpoint.get('param_schedulers')
    for name, schedule, state in _schedules(runner.param_schedulers, saved, 'param_schedulers'):
        changes += _changed_schedule(schedule, state, name)
    ours = runner.param_schedulers
    if isinstance(ours, list) and isinstance(saved, list) and len(ours) != len(saved):
        changes.append(f'{len(saved)} param_schedulers (config: {len(ours)})')
    if changes:
        shown = list(dict.fromkeys(changes))
        more = f' and {len(shown) - 6} more' if len(shown) > 6 else ''
        runner.logger.warning(
            f'{source} goes on with the settings that it was trained with, not with those of the '
            f"config: {'; '.join(shown[:6])}{more}. To train with the config's, {_NEW}"
        )


def _groups(optimizer: Optimizer, state: object, name: str) -> list[dict]:
    """The groups of parameters in a state that this optimiser can take over."""
    groups = state.get('param_groups') if isinstance(state, dict) else None
    wrong = ''
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get('params'), list) for group in groups
    ):
        raise CheckpointError(f'{name} is not the state of an optimiser. To use the file, {_NEW}')
    sizes = [len(group['params']) for group in groups]
    own_sizes = [len(group['params']) for group in optimizer.param_groups]
    kind = type(optimizer).__name__
    if sizes != own_sizes:
        wrong = (
            f'has {len(sizes)} groups of {sum(sizes)} parameters, but {kind} of the config has '
            f'{len(own_sizes)} groups of {sum(own_sizes)}'
        )
    else:  # a newer version of the same optimiser adds the settings that it needs itself
        probe = object.__new__(type(optimizer))
        probe.__dict__.update(optimizer.__dict__)
        probe.__setstate__(dict(state={}, param_groups=[dict(g, params=[]) for g in groups]))
        missing = [key for key in optimizer.defaults for g in probe.param_groups if key not in g]
        if missing:
            wrong = (
                f'is of another optimiser than {kind} of the config: it lacks {missing[0]!r} and '
                f'has {sorted(set(groups[0]) - {"params"})}'
            )
    if wrong:
        raise CheckpointError(
            f'{name} {wrong}. Resume with the optim_wrapper and model that it was trained with, or '
            f'{_NEW}'
        )
    return groups


def _schedules(own: object, saved: object, name: str) -> Iterator[tuple[str, object, object]]:
    """Name, schedule and saved state of all that both have."""
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        for key in own:
            yield from _schedules(own[key], saved.get(key), f'{name}.{key}')
    elif isinstance(own, list) and isinstance(saved, list):
        for i, (schedule, state) in enumerate(zip(own, saved)):
            yield f'{name}.{i}', schedule, state


def _changed_settings(ours: dict, theirs: dict) -> Iterator[str]:
    for key in ours:
        if key == 'params' or key.startswith('initial_') or key not in theirs:
            continue
        if key == 'betas' and 'initial_momentum' in theirs:  # a schedule changes them
            continue
        first = f'initial_{key}'  # before a schedule changed it
        yield from _change(key, theirs.get(first, theirs[key]), ours.get(first, ours[key]))


def _changed_schedule(schedule: object, state: dict, name: str) -> Iterator[str]:
    kinds = type(schedule).__mro__[:-1]  # each may take arguments of its own
    for key in sorted({key for kind in kinds for key in inspect.signature(kind).parameters}):
        if key in vars(schedule) and key not in ('last_step', 'verbose'):
            yield from _change(f'{name}.{key}', state.get(key, 'none'), vars(schedule)[key])


def _change(name: str, saved: object, own: object) -> Iterator[str]:
    if not isinstance(saved, _SIMPLE) or not isinstance(own, _SIMPLE):
        return
    if isinstance(saved, (tuple, list)) and isinstance(own, (tuple, list)):
        saved, own = tuple(saved), tuple(own)
    is_close = isinstance(saved, float) and isinstance(own, float) and math.isclose(saved, own)
    if saved != own and not is_close:
        saved, own = (sorted(v) if isinstance(v, Counter) else v for v in (saved, own))
        yield f'{name} {str(saved)[:60]} (config: {str(own)[:60]})'
