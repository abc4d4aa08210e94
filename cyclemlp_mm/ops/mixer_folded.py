"""The mixer as one product of the shifted operand with a matrix per image.

The branch weights depend on the map only through three means, and once they are known the mixer is
linear. So the means come first, in one pass, then the matrix, then one product: 7/3 C^2
multiply-adds per token against 4 C^2, and two passes over memory. Making the matrix costs 7/3 C^3
per image with the projection folded in; on a small map the projection is better left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .autocast import accumulate_dtype, compute_dtype
from .cpu_linear import add_linear
from .map_sums import map_means
from .mixer_matrix import mixer_matrix
from .mixer_weights import MixerWeights, weigh_branches
from .shifted_product import shifted_product


def folded_mixer(
    x: Tensor, weights: MixerWeights, form: str = 'folded', residual: Tensor | None = None
) -> Tensor:
    """Mix a map by one product per image, and a second one where the projection is left out.

    Products are made in autocast's dtype if it is on, sums in float32 (float64 for float64). So are
    matrices in training, and rounded once; in inference they are products as any other.

    Args:
        x (Tensor): (B, H, W, C), normed.
        weights (MixerWeights): Parameters.
        form (str): 'folded', 'triton' (the same by kernels of ours) or 'shift' (the projection is
            not part of the matrix). Defaults to 'folded'.
        residual (Tensor, optional): (B, H, W, C); added.

    Returns:
        Tensor: (B, H, W, C).
    """
    product_dtype = compute_dtype(x)
    sum_dtype = matrix_dtype = accumulate_dtype(x.dtype)
    if not torch.is_grad_enabled():
        matrix_dtype = product_dtype
    with torch.autocast(x.device.type, enabled=False):
        x = x.contiguous()
        if weights.reweight is None:
            a = torch.ones(1, 3, x.shape[-1], dtype=matrix_dtype, device=x.device)
        else:
            x, means = map_means(x, sum_dtype)
            a = weigh_branches(means.to(matrix_dtype), weights)
        matrix = mixer_matrix(a, weights, form != 'shift').to(product_dtype)
        x = x.to(product_dtype)
        if residual is not None:
            residual = residual.contiguous()
        if form == 'triton':
            from .mixer_triton import triton_product  # needs Triton

            y = triton_product(x, matrix)
            return y if residual is None else residual + y
        if form == 'folded':
            return shifted_product(x, matrix, residual)
        y = shifted_product(x, matrix)
        proj, bias = weights.weight_proj.to(product_dtype), weights.bias_proj.to(product_dtype)
        return add_linear(y, proj, bias, residual)


def fixed_matrix(weights: MixerWeights) -> Tensor:
    """The matrix of a mixer without reweighting, which is the same for all images.

    Returns:
        Tensor: (1, C, operand_width(C)), float32 or float64, without gradient.
    """
    channels = weights.weight_proj.shape[0]
    dtype = accumulate_dtype(weights.weight_proj.dtype)
    with torch.no_grad():
        a = torch.ones(1, 3, channels, dtype=dtype, device=weights.weight_proj.device)
        return mixer_matrix(a, weights, project=True)


def apply_matrix(x: Tensor, matrix: Tensor, residual: Tensor | None = None) -> Tensor:
    """Mix a map by a matrix that is made: see :func:`folded_mixer`.

    Args:
        x (Tensor): (B, H, W, C), normed.
        matrix (Tensor): From :func:`fixed_matrix`.
        residual (Tensor, optional): (B, H, W, C); added.
    """
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        residual = None if residual is None else residual.contiguous()
        return shifted_product(x.contiguous().to(dtype), matrix.to(dtype), residual)
