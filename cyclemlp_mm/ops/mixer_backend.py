"""Which form of the mixer runs where: the one place that chooses."""

import torch
from torch import Tensor

#: Every form, plain to fast; 'auto' takes one of them.
BACKENDS = ('reference', 'shift', 'folded', 'triton')


def choose_backend(x: Tensor, reweight: bool) -> str:
    """'auto': see the module."""
    tokens, channels = x.shape[1] * x.shape[2], x.shape[3]
    return 'folded' if tokens > 2.25 * channels else 'reference'


def resolve_backend(backend: str, x: Tensor, reweight: bool) -> str:
    """The form to run.

    Args:
        backend (str): One of :data:`BACKENDS`, or 'auto'.
        x (Tensor): (B, H, W, C).
        reweight (bool): Whether each image has a matrix of its own.

    Raises:
        ValueError: No such backend.
        RuntimeError: The backend cannot run here; the message says why.
    """
    if backend == 'auto':
        return choose_backend(x, reweight)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {BACKENDS}, but got {backend!r}")
    return backend
