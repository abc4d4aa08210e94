"""What compilers and tracers record of a backbone.

``torch.compile`` records one operator in inference on a CPU: the fast forms work a cacheful of
tokens at a time, and what a compiler makes of standard operators was 1.3 to 2.3 times as slow.
Everywhere else standard operators are recorded.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, fx, nn

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.ops.recording import is_plain, is_transformed

_COUNTER = itertools.count()
_MODULES: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


class Recorded(nn.Module):
    """A backbone whose ``forward`` asks :meth:`is_one_operator` first.

    The operator finds the module by a number, which no copy of the module has. A family that says
    its :meth:`level_sizes` puts what the operator runs into ``levels``.
    """

    #: From an image's height and width, those of the returned levels.
    level_sizes: Callable[[int, int], list[tuple[int, int]]] | None = None

    def __new__(cls, *args: object, **kwargs: object) -> Recorded:
        """Number an instance, whether it is built, copied or unpickled."""
        module = super().__new__(cls)
        module.__dict__['_number'] = number = next(_COUNTER)
        _MODULES[number] = module
        return module

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({**state, '_number': self._number})

    def __prepare_scriptable__(self) -> None:  # torch.jit.script calls it
        raise _not_traceable(self, 'torch.jit.script')

    def is_one_operator(self, image: Tensor) -> bool:
        """Whether ``torch.compile`` is to record :meth:`one_operator`.

        On a CPU, and only where this shows nowhere but in time: without gradients, training,
        autocast, hooks, tensor subclasses and transforms of ``torch.func``, and not in an export.

        Args:
            image (Tensor): (B, C, H, W).

        Raises:
            UserError: ``image`` is FX's.
        """
        if isinstance(image, fx.Proxy):
            raise _not_traceable(self, 'FX')
        # The public is_exporting() is True in torch.compile, too; PyTorch before 2.7 has neither.
        exporting = getattr(torch.compiler, '_is_exporting_flag', True)
        if exporting or not torch.compiler.is_compiling() or is_transformed():
            return False
        if self.level_sizes is None or torch.is_autocast_enabled('cpu'):
            return False
        gradients = torch.is_grad_enabled()
        for tensor in (image, *_state(self).values()):
            if not is_plain(tensor) or not tensor.is_cpu or (gradients and tensor.requires_grad):
                return False
        return _only_computes(self)

    def one_operator(self, image: Tensor) -> tuple[Tensor, ...]:
        """``self(image)``, recorded as one operator.

        Args:
            image (Tensor): (B, C, H, W).
        """
        state = list(_state(self).values())
        return tuple(_backbone(self._number, image, state))


# Generators, as of self.parameters(), take a compiler ten times as long as these recursions.


def _state(module: nn.Module, prefix: str = '') -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    own = {**module._parameters, **module._buffers}
    found = {prefix + name: tensor for name, tensor in own.items() if tensor is not None}
    for name, child in module._modules.items():
        if child is not None:
            found |= _state(child, f'{prefix}{name}.')
    return found


def _only_computes(module: nn.Module) -> bool:
    """Whether nothing inside is in training, or has hooks."""
    if module.training or module._forward_hooks or module._forward_pre_hooks:
        return False
    for child in module._modules.values():
        if child is not None and not _only_computes(child):
            return False
    return True


def any_size() -> AbstractContextManager:
    """In ``torch.export``, a context in which no graph is tied to sizes other than 1.

    Of an image of 32 px, the coarsest level has one cell; PyTorch would ask for two.
    """
    exporting = getattr(torch.compiler, '_is_exporting_flag', False)
    if not exporting or torch.compiler.is_dynamo_compiling():
        return nullcontext()
    from torch.fx.experimental import _config  # PyTorch 2.1 has none

    return _config.patch(backed_size_oblivious=True)


def _not_traceable(module: nn.Module, tracer: str) -> UserError:
    return UserError(
        f'{type(module).__name__} cannot be recorded by {tracer}: its forward depends on its '
        'input. For features, use out_indices or forward hooks; for a file, torch.export, '
        'tools/export.py or torch.jit.trace of cyclemlp_mm.export.plain_form(backbone)'
    )


class _Levels(nn.Module):
    """What the operator runs: not ``forward``, which a subclass may have made another function."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.module.levels(image))


@torch.no_grad()
def _run(number: int, image: Tensor, state: list[Tensor]) -> list[Tensor]:
    levels = _Levels(_MODULES[number])
    own = _state(levels)
    given = dict(zip(own, state, strict=True))
    if all(own[name] is tensor for name, tensor in given.items()):
        return levels(image)
    return torch.func.functional_call(levels, given, (image,))


def _shapes(number: int, image: Tensor, state: list[Tensor]) -> list[Tensor]:
    # The levels of a small image, in the sizes of this one: these may be symbols.
    levels = _run(number, image.new_empty(1, image.shape[1], 32, 32), state)
    sizes = _MODULES[number].level_sizes(*image.shape[2:])
    return [
        level.new_empty(image.shape[0], level.shape[1], *size)
        for level, size in zip(levels, sizes, strict=True)
    ]


if hasattr(torch.compiler, '_is_exporting_flag'):
    _backbone = torch.library.custom_op(
        'cyclemlp_mm::backbone',
        _run,
        mutates_args=(),
        schema='(int number, Tensor image, Tensor[] state) -> Tensor[]',
    )
    _backbone.register_fake(_shapes)
