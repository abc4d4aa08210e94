"""Gradients that are themselves differentiated.

A gradient written by hand writes into parts of results, so autograd cannot look into it. Where its
result is to have derivatives of its own (``create_graph=True``, or a transform around the backward
pass), autograd differentiates the plain form instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .recording import standard_operators_only


def differentiated_again(*grads: Tensor) -> bool:
    """Whether the gradient that a ``backward`` is asked for must be made by :func:`gradients`.

    Args:
        *grads (Tensor): What ``backward`` was given.
    """
    return torch.is_grad_enabled() or standard_operators_only(*grads) or _is_batched()


def _is_batched() -> bool:
    """Whether tensors stand for several gradients each: ``is_grads_batched=True``."""
    level = torch._C._vmapmode_increment_nesting()  # there is no way to ask
    torch._C._vmapmode_decrement_nesting()
    return level > 1


def gradients(
    plain: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[object], *grads: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``plain(*inputs)``, of any order.

    Args:
        plain (Callable): The function, of differentiable operators.
        inputs (Sequence): Its arguments, tensors and others.
        *grads (Tensor): Gradients of its outputs.

    Returns:
        tuple: One gradient per input; None for those that need none.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: of two inputs one may be made from the other, which is no part of this function.
        inputs = [t.view_as(t) if isinstance(t, Tensor) else t for t in inputs]
        outputs = plain(*inputs)
    wanted = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    found = torch.autograd.grad(
        outputs, [inputs[i] for i in wanted], grads, create_graph=again, allow_unused=True
    )
    by_input = dict(zip(wanted, found, strict=True))
    return tuple(by_input.get(i) for i in range(len(inputs)))
