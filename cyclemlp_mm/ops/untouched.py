"""Whether a layer may be computed from its parameters alone, without being called.

A layer that someone put in another's place (LoRA, quantised, sharded), parametrised, or hangs hooks
on has to be called, or it would be left out without a word.
"""

from torch import nn

_HOOKS = ('_forward_pre_hooks', '_forward_hooks', '_backward_pre_hooks', '_backward_hooks')


def untouched(kind: type, *modules: nn.Module) -> bool:
    """Whether all are of this very class, none has hooks, and none a ``forward`` of its own.

    Args:
        kind (type): The class whose computation is to be taken over.
        *modules (nn.Module): The layers.
    """
    return all(type(m) is kind and not listened_to(m) for m in modules)


def listened_to(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says: hooks, or another ``forward``."""
    own = module.__dict__
    return 'forward' in own or any(own[name] for name in _HOOKS)
