"""The token mixer of CycleMLP (arXiv 2107.10224, Sec. 3.3), as a function of tensors.

Three branches of width C read the map: ``h``, a CycleFC along x, ``w``, a CycleFC along y, and
``c``, a Linear without bias. They are summed with weights per image and channel (split attention)
and projected.
"""

from __future__ import annotations

from torch import Tensor

from .autocast import compute_dtype
from .mixer_backend import resolve_backend
from .mixer_folded import folded_mixer
from .mixer_reference import reference_mixer
from .mixer_weights import MixerWeights


def cycle_mixer(
    x: Tensor, weights: MixerWeights, backend: str = 'auto', residual: Tensor | None = None
) -> Tensor:
    """Mix a map. Every backend computes the same function.

    Args:
        x (Tensor): (B, H, W, C), normed, of any floating dtype.
        weights (MixerWeights): Parameters.
        backend (str): How to compute it:

            - 'reference': shift + Linear in the published order of operations.
            - 'shift': the three branches as one product with the shifted operand, then the
              projection.
            - 'folded': branches and projection as one product per image.
            - 'triton': 'folded', by a kernel that never makes the operand; needs a GPU and Triton.
            - 'auto': the fastest, by the rule of :mod:`cyclemlp_mm.ops.mixer_backend`.

            Defaults to 'auto'.
        residual (Tensor, optional): (B, H, W, C), added to the result: in inference as part of
            the product, which saves a pass over memory.

    Returns:
        Tensor: (B, H, W, C); under autocast in its dtype, as a Linear's output is.

    Raises:
        ValueError: There is no such backend.
        RuntimeError: The backend cannot run on this tensor or machine.
    """
    form = resolve_backend(backend, x, compute_dtype(x), weights)
    if form == 'reference':
        y = reference_mixer(x, weights)
        return y if residual is None else residual + y
    return folded_mixer(x, weights, form, residual)
