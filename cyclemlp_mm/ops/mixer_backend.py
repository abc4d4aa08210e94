"""Which form of the mixer runs where: the one place that chooses.

Measured on a CPU (float32 and bfloat16, inference and training, with and without reweighting, 7x7
to 128x128 maps of 64 to 768 channels), by C channels and N tokens that share a matrix: H · W of
one image, or of all images where the branches are not reweighted.

- Making the matrix costs 7/3 C^3 with the projection in it: worth it from N = 4 C on ('folded').
  In 16 bits, where a product costs least of all, from N = 8 C on.
- With the projection apart it costs C^2, and shifted copies: worth it from N = 1.5 C on ('shift').
  In 16 bits it never is, where products have hardware of their own (AMX).
- Both cost small operations that 'reference' does without: they pay above 128 Ki numbers per
  matrix.

A GPU takes the same rule; it was not measured there, nor was 'triton', which therefore has to be
asked for. Devices that only count (meta) take 'reference': its operations are the published ones.
Where only standard operators may be used, every backend is 'reference'.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from .mixer_weights import MixerWeights
from .recording import standard_operators_only

#: Every form, plain to fast; 'auto' takes one of the first three.
BACKENDS = ('reference', 'shift', 'folded', 'triton')
#: Tokens per channel from which on the projection is folded in, and from which on the branches
#: are, by bits of the product.
FOLD_PROJECTION_FROM, FOLD_BRANCHES_FROM = {32: 4.0, 16: 8.0}, {32: 1.5, 16: 8.0}
#: Numbers per matrix above which folding pays.
FOLD_MIN_NUMEL = 128 * 1024

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_backend(backend: str) -> str:
    """Return ``backend``, or raise ValueError if there is none of that name."""
    if backend != 'auto' and backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {BACKENDS}, but got {backend!r}")
    return backend


def choose_backend(
    shape: Sequence[int], device: torch.device, dtype: torch.dtype, reweight: bool
) -> str:
    """The form that 'auto' stands for: see the module.

    Args:
        shape (Sequence[int]): Of the map, (B, H, W, C).
        device (torch.device): Of the map.
        dtype (torch.dtype): Of the product.
        reweight (bool): Whether every image has a matrix of its own.
    """
    batch, height, width, channels = shape
    tokens = height * width if reweight else batch * height * width
    if device.type not in ('cpu', 'cuda') or tokens * channels <= FOLD_MIN_NUMEL:
        return 'reference'
    bits = min(8 * dtype.itemsize, 32)
    if tokens >= FOLD_PROJECTION_FROM[bits] * channels:
        return 'folded'
    return 'shift' if tokens >= FOLD_BRANCHES_FROM[bits] * channels else 'reference'


def why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps the Triton kernels from running; None if nothing does.

    Args:
        device (torch.device): Of the map.
        dtype (torch.dtype): Of the product.
    """
    if find_spec('triton') is None:
        return 'Triton is not installed'
    if dtype not in _TRITON_DTYPES:
        return f'its kernels take float32, bfloat16 and float16, not {dtype}'
    from .mixer_triton import interpreted

    if device.type != 'cuda' and not interpreted():
        return f'its kernels need a CUDA device, and the map is on {device}'
    return None


def resolve_backend(backend: str, x: Tensor, dtype: torch.dtype, weights: MixerWeights) -> str:
    """The form to run.

    Args:
        backend (str): One of :data:`BACKENDS`, or 'auto'.
        x (Tensor): (B, H, W, C).
        dtype (torch.dtype): Of the product.
        weights (MixerWeights): Parameters.

    Raises:
        ValueError: No such backend.
        RuntimeError: The backend cannot run here; the message says why.
    """
    check_backend(backend)
    *tensors, reweight = weights
    if standard_operators_only(x, *tensors, *(reweight or ())):
        return 'reference'
    if backend == 'auto':
        return choose_backend(x.shape, x.device, dtype, reweight is not None)
    if backend == 'triton':
        reason = why_not_triton(x.device, dtype)
        if reason is not None:
            raise RuntimeError(
                f"backend='triton' cannot run: {reason}. backend='auto' takes what can"
            )
    return backend
