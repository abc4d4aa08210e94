"""The mixer as one product of the shifted operand with a matrix per image.

The branch weights depend on the map only through three means, and once they are known the mixer is
linear. So the means come first, in one pass, then the matrix, then one product: 7/3 C^2
multiply-adds per token against 4 C^2, and two passes over memory. Making the matrix costs 7/3 C^3
per image with the projection folded in; on a small map the projection is better left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import accumulate_dtype, compute_dtype
from .cpu_linear import add_linear
from .map_sums import map_sums
from .mixer_matrix import mixer_matrix
from .mixer_weights import MixerWeights, branch_weights
from .shifted_product import shifted_product


def weigh_branches(sums: Tensor, tokens: int, weights: MixerWeights) -> Tensor:
    """Weights of the branches from the sums of the map and its shifted copies.

    Args:
        sums (Tensor): (B, 3, C), see :func:`map_sums`.
        tokens (int): H · W.
        weights (MixerWeights): Parameters, with ``reweight``.

    Returns:
        Tensor: (B, 3, C), of the dtype of ``sums``: a_h, a_w, a_c.
    """
    dtype = sums.dtype
    mean_c, mean_h, mean_w = (sums / tokens).unbind(1)
    mean = (
        F.linear(mean_h, weights.weight_h.to(dtype), weights.bias_h.to(dtype))
        + F.linear(mean_w, weights.weight_w.to(dtype), weights.bias_w.to(dtype))
        + F.linear(mean_c, weights.weight_c.to(dtype))
    )
    reweight = type(weights.reweight)(*(p.to(dtype) for p in weights.reweight))
    return torch.stack(branch_weights(mean, reweight), dim=1)


def folded_mixer(
    x: Tensor,
    weights: MixerWeights,
    form: str = 'folded',
    residual: 'Tensor | None' = None,
) -> Tensor:
    """Mix a map by one product per image, and a second one where the projection is left out.

    Products are made in autocast's dtype if it is on, means and matrices in float32 (float64 for
    float64): a matrix is rounded once.

    Args:
        x (Tensor): (B, H, W, C), normed.
        weights (MixerWeights): Parameters.
        form (str): 'folded', 'triton' (the same by kernels of ours) or 'shift' (the projection is
            not part of the matrix). Defaults to 'folded'.
        residual (Tensor, optional): (B, H, W, C); added.

    Returns:
        Tensor: (B, H, W, C).
    """
    product_dtype, sum_dtype = compute_dtype(x), accumulate_dtype(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        x = x.contiguous()
        if weights.reweight is None:
            a = torch.ones(1, 3, x.shape[-1], dtype=sum_dtype, device=x.device)
        else:
            x, sums = map_sums(x, sum_dtype)
            a = weigh_branches(sums, x.shape[1] * x.shape[2], weights)
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


def apply_matrix(x: Tensor, matrix: Tensor, residual: 'Tensor | None' = None) -> Tensor:
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
