"""Optimiser and schedule of a resumed checkpoint, compared with those of the config.

mmengine takes over the checkpoint's, whatever the config says.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from numbers import Real

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from cyclemlp_mm.errors import CheckpointError, shorten

from .sharded import is_sharded

_NEW = 'start a new training from its weights: --cfg-options load_from=FILE, without --resume'
#: Settings of which one is None where the other is given.
_MAY_BE_NONE = ('.eta_min', '.eta_min_ratio')
#: Optimisers whose states are not one of each parameter, and settings that change no state.
_OTHERWISE = (torch.optim.LBFGS, torch.optim.SparseAdam)
_HOW = {'fused', 'foreach', 'capturable', 'differentiable'}
_SIMPLE = (int, float, str, tuple, list, Counter, type(None))


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
        own_groups = part.optimizer.param_groups
        for i, (ours, theirs) in enumerate(zip(own_groups, groups)):
            _check_group(ours, theirs, f'checkpoint {source}: {name}.param_groups.{i}')
        if (base := state.get('base_param_settings')) is not None:
            base = base if isinstance(base, dict) else {}
            where = f'checkpoint {source}: {name}.base_param_settings'
            _check_group(own_groups[0], dict(base, lr=base.get('lr')), where)
        if not is_sharded(runner.model):
            _check_state(part.optimizer, groups, state, f'checkpoint {source}: {name}')
        changes += _of_groups(part.optimizer.param_groups, groups)
    saved = checkpoint.get('param_schedulers')
    _check_schedules(runner.param_schedulers, saved, f'checkpoint {source}: param_schedulers')
    changes += _of_schedules(runner.param_schedulers, saved)
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
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(f'{name} is not the state of an optimiser. To use the file, {_NEW}')
    if not all(isinstance(group.get('params'), list) for group in groups):
        raise CheckpointError(f'{name}: a group has no list of parameters. To use the file, {_NEW}')
    sizes = [len(group['params']) for group in groups]
    own_sizes = [len(group['params']) for group in optimizer.param_groups]
    kind = type(optimizer).__name__
    if sizes != own_sizes:
        raise CheckpointError(
            f'{name} has {len(sizes)} groups of {sum(sizes)} parameters, but {kind} of the config '
            f'has {len(own_sizes)} groups of {sum(own_sizes)}: resume with the optim_wrapper and '
            f'model that it was trained with, or {_NEW}'
        )
    # What newer versions of the same optimiser need, it adds itself.
    probe = object.__new__(type(optimizer))
    probe.__dict__.update(optimizer.__dict__)
    probe.__setstate__(dict(state={}, param_groups=[dict(g, params=[]) for g in groups]))
    missing = [key for key in optimizer.defaults for g in probe.param_groups if key not in g]
    if missing:
        raise CheckpointError(
            f'{name} is of another optimiser than {kind} of the config: it lacks {missing[0]!r} '
            f'and has {sorted(set(groups[0]) - {"params"})}. Resume with the optim_wrapper that it '
            f'was trained with, or {_NEW}'
        )
    return groups


def _check_group(ours: dict, theirs: dict, name: str) -> None:
    for key in ours:
        if key != 'params' and not (isinstance(ours[key], bool) and theirs.get(key) is None):
            _check_kind(theirs.get(key, ours[key]), ours[key], f'{name}.{key}')


def _check_state(optimizer: Optimizer, groups: list[dict], saved: dict, name: str) -> None:
    """Steps and averages of PyTorch's optimisers; those of others are not known."""
    state = saved.get('state')
    if not isinstance(state, dict) or not all(isinstance(part, dict) for part in state.values()):
        raise CheckpointError(f'{name}.state is no dict of dicts. To use the file, {_NEW}')
    for group, theirs in zip(optimizer.param_groups, groups):
        kept = _kept(optimizer, theirs)
        for param, number in zip(group['params'], theirs['params']):
            part = state.get(number, {}) if isinstance(number, (int, str)) else {}
            where = f'{name}.state.{number}'
            # Some have a state before their first step, and never make it later.
            for key in kept if part or optimizer.state.get(param) else ():
                if key not in part and not isinstance(optimizer, torch.optim.SGD):
                    raise CheckpointError(
                        f'{where} has no {key}, which {type(optimizer).__name__} with the settings '
                        f'of the checkpoint needs. To use the file, {_NEW}'
                    )
            for key, value in part.items():
                if key == 'step':
                    _check_kind(value, 0, f'{where}.{key}')
                elif (
                    kept.get(key)
                    and (value is not None or key != 'momentum_buffer')
                    and (not isinstance(value, Tensor) or value.shape != param.shape)
                ):
                    raise CheckpointError(
                        f'{where}.{key} is no tensor of the shape {tuple(param.shape)} of its '
                        f'parameter. To use the file, {_NEW}'
                    )


def _kept(optimizer: Optimizer, group: dict) -> dict[str, bool]:
    """What an optimiser of PyTorch keeps of a parameter, and whether it is of its shape."""
    kind, shape = type(optimizer), (2, 3)
    if not kind.__module__.startswith('torch.optim.') or kind in _OTHERWISE:
        return {}
    takes = set(inspect.signature(kind).parameters) & set(optimizer.defaults) - _HOW
    param = torch.zeros(shape, requires_grad=True)
    param.grad = torch.zeros(shape)
    try:
        probe = kind([param], **{key: group[key] for key in takes if key in group})
        probe.step()
    except ValueError:  # a setting that only a schedule may give
        return {}
    state = {key: value for key, value in probe.state[param].items() if value is not None}
    return {key: isinstance(value, Tensor) and value.shape == shape for key, value in state.items()}


def _check_schedules(own: object, saved: object, name: str) -> None:
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        for key in own:
            _check_schedules(own[key], saved.get(key), f'{name}.{key}')
    elif isinstance(own, list) and isinstance(saved, list):
        for i, (schedule, state) in enumerate(zip(own, saved)):
            if not isinstance(state, dict):
                raise CheckpointError(f'{name}.{i} is no dict. To use the file, {_NEW}')
            changed = state.get('param_name', schedule.param_name)
            if changed not in list(schedule.optimizer.param_groups[0]):
                raise CheckpointError(
                    f'{name}.{i}.param_name is {shorten(changed)}, which the optimiser of this '
                    f'training does not have. Resume another checkpoint, or {_NEW}'
                )
            for key, ours in schedule.state_dict().items():
                _check_kind(state.get(key, ours), ours, f'{name}.{i}.{key}')


def _check_kind(saved: object, own: object, name: str) -> None:
    """Raise where a setting is not of the kind that this training has: number, text, list, dict."""
    kind = next((kind for kind in (Real, str, (list, tuple), dict) if isinstance(own, kind)), None)
    if kind is None or (saved is None and name.endswith(_MAY_BE_NONE)):
        return
    if kind is Real and isinstance(saved, Tensor) and saved.numel() == 1:
        saved = saved.item()
    fits = isinstance(saved, kind) and saved == saved  # not nan
    if not fits:
        raise CheckpointError(
            f'{name} is {shorten(saved)}, where this training has {shorten(own)}. Resume another '
            f'checkpoint, or {_NEW}'
        )
    if kind == (list, tuple) and own and all(isinstance(part, Real) for part in own):
        for part in saved:
            _check_kind(part, own[0], name)


def _of_groups(own: list[dict], saved: list[dict]) -> Iterator[str]:
    for ours, theirs in zip(own, saved):
        for key in ours:
            if key == 'params' or key.startswith('initial_') or key not in theirs:
                continue
            if key == 'betas' and 'initial_momentum' in theirs:  # a schedule changes them
                continue
            first = f'initial_{key}'  # before a schedule changed it
            yield from _change(key, theirs.get(first, theirs[key]), ours.get(first, ours[key]))


def _of_schedules(own: object, saved: object) -> Iterator[str]:
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        for name in own:
            yield from _of_schedules(own[name], saved.get(name))
        return
    if not isinstance(own, list) or not isinstance(saved, list):
        return
    if len(own) != len(saved):
        yield f'{len(saved)} param_schedulers (config: {len(own)})'
    for i, (schedule, state) in enumerate(zip(own, saved)):
        kinds = type(schedule).__mro__[:-1]  # each may take arguments of its own
        for key in sorted({key for kind in kinds for key in inspect.signature(kind).parameters}):
            if key in vars(schedule) and key not in ('last_step', 'verbose'):
                theirs = state.get(key, 'none') if isinstance(state, dict) else 'none'
                yield from _change(f'param_schedulers.{i}.{key}', theirs, vars(schedule)[key])


def _change(name: str, saved: object, own: object) -> Iterator[str]:
    if not isinstance(saved, _SIMPLE) or not isinstance(own, _SIMPLE):
        return
    if isinstance(saved, (tuple, list)) and isinstance(own, (tuple, list)):
        saved, own = tuple(saved), tuple(own)
    is_close = isinstance(saved, float) and isinstance(own, float) and math.isclose(saved, own)
    if saved != own and not is_close:
        yield f'{name} {_say(saved)} (config: {_say(own)})'


def _say(value: object) -> str:
    return str(sorted(value) if isinstance(value, Counter) else value)[:60]
