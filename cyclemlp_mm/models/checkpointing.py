"""Activation checkpointing that changes memory and time, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cyclemlp_mm.ops.recording import is_recording, is_transformed


def checkpointed(block: nn.Module, *inputs: object) -> Tensor:
    """``block(*inputs)``, whose activations are computed again in the backward pass.

    Inside transforms of ``torch.func`` and forward-mode AD, activations are kept.

    Args:
        block (nn.Module): Its BatchNorms update their statistics in the forward pass alone.
        *inputs: What it is called with.

    Returns:
        Tensor: The block's output.
    """
    if is_transformed():  # transforms of torch.func do not support recomputation
        return block(*inputs)
    norms = [
        module
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if not norms or is_recording():  # a compiler repeats no updates
        return checkpoint(block, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_aside(norms)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_aside(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Have ``norms`` update copies of their statistics meanwhile."""
    kept = [(norm, *named) for norm in norms for named in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:  # recomputing ends by an exception, as soon as all is there
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
