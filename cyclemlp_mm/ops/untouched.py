"""Whether a layer may be computed from its parameters alone, without being called.

A layer that someone put in another's place (LoRA, quantised, sharded, or built with other
arguments), parametrised, or hangs hooks on has to be called, or the change would have no effect.
"""

from __future__ import annotations

import functools

from torch import nn
from torch.nn.modules import module as _modules

from .recording import is_plain, is_recording

#: Hooks on all modules at once: ``torch.nn.modules.module.register_module_forward_hook``, ….
_GLOBAL_HOOKS = (
    _modules._global_forward_pre_hooks,
    _modules._global_forward_hooks,
    _modules._global_backward_pre_hooks,
    _modules._global_backward_hooks,
)


def untouched(
    kind: type, *modules: nn.Module, bias: bool | None = True, **settings: object
) -> bool:
    """Whether all are as they were built, and have nothing around them.

    That is: of this very class, whose ``forward`` is the one it was defined with; without hooks
    and without a ``forward`` of their own; parameters are plain tensors, and all are there.

    Args:
        kind (type): The class whose computation is to be taken over.
        *modules (nn.Module): The layers.
        bias (bool, optional): Whether they have a bias, where the class can have one; None allows
            both. Defaults to True.
        **settings: Attributes and what they have to be, e.g. ``kernel_size=(1, 3)``.
    """
    for module in modules:
        if type(module) is not kind or listened_to(module):
            return False
        own = module.__dict__
        # Replicas of DataParallel, and FSDP, hold parameters as attributes.
        held = {name: own[name] for name in ('weight', 'bias') if name in own}
        for name, tensor in (*own['_parameters'].items(), *held.items()):
            optional = name == 'bias' and bias is not True
            if not is_plain(tensor) or (tensor is None and not optional):
                return False
            if name == 'bias' and bias is False and tensor is not None:
                return False
        for name, value in settings.items():
            if getattr(module, name) != value:
                return False
    return True


def listened_to(module: nn.Module) -> bool:
    """Whether calling the module does more than its class was written to do: hooks, on it or on all
    modules, or another ``forward``, put into it or into its class."""
    own, kind = module.__dict__, type(module)
    # A compiler warns of caches, and does without them.
    as_written = _as_written.__wrapped__ if is_recording() else _as_written
    return bool(
        'forward' in own
        or has_global_hooks()
        or own['_forward_hooks']
        or own['_forward_pre_hooks']
        or own['_backward_hooks']
        or own['_backward_pre_hooks']
        or not as_written(kind, getattr(kind, 'forward', None))
    )


def has_global_hooks() -> bool:
    """Whether there are hooks on all modules."""
    return any(_GLOBAL_HOOKS)


@functools.cache
def _as_written(kind: type, forward: object) -> bool:
    """Whether a class's ``forward`` comes from where the class does: a replaced one is written
    elsewhere."""
    home = next((base.__module__ for base in kind.__mro__ if 'forward' in base.__dict__), None)
    return getattr(forward, '__globals__', {}).get('__name__') == home
