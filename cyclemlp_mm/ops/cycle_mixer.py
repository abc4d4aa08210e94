"""The token mixer of CycleMLP (arXiv 2107.10224, Sec. 3.3), as a function of tensors.

Three branches of width C read the map: ``h``, a CycleFC along x, ``w``, a CycleFC along y, and
``c``, a Linear without bias. They are summed with weights per image and channel (split attention)
and projected. :func:`reference_mixer` does it in that order; the other forms compute the same.

The branch weights depend on the map only through its mean and those of its shifted copies. Once
they are known, the mixer is linear: one product with a matrix, see :mod:`.shifted_product`. That
takes 7/3 C^2 multiply-adds per token in place of 4 C^2. Which form 'auto' takes depends on C and on
the N tokens that share a matrix: H · W of one image, or of all images without reweighting. Measured
on a CPU (float32 and bfloat16, inference and training, 7x7 to 128x128 maps of 64 to 768 channels):

- 'folded', branches and projection in one matrix, which costs 7/3 C^3: from N = 4 C on, in 16 bits
  from N = 8 C on.
- 'shift', the projection apart, which costs C^2 and shifted copies: from N = 1.5 C on, in 16 bits
  never.
- Both only above 128 Ki numbers per matrix.

A GPU takes the same rule; it was not measured there, nor was 'triton', which has to be asked for.
Where only standard operators may be used, and on the meta device, every backend is 'reference'.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu_linear import add_linear
from .cycle_fc import cycle_fc
from .recording import accumulate_dtype, compute_dtype, standard_operators_only
from .shifted_product import map_means, mixer_matrix, shifted_product, sum_over_space

#: Pseudo-kernels of the two shifted branches.
KERNEL_H, KERNEL_W = (1, 3), (3, 1)
#: Every form, plain to fast; 'auto' takes one of the first three.
BACKENDS = ('reference', 'shift', 'folded', 'triton')
#: Least tokens per channel for 'folded' and for 'shift', by bits of the product.
FOLD_PROJECTION_FROM, FOLD_BRANCHES_FROM = {32: 4.0, 16: 8.0}, {32: 1.5, 16: 8.0}
FOLD_MIN_NUMEL = 128 * 1024  # numbers per matrix above which folding pays


class ReweightWeights(NamedTuple):
    """The MLP that weighs the branches: Linear C to C/4, GELU, Linear C/4 to 3C."""

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


class MixerWeights(NamedTuple):
    """Parameters of the mixer: weights (C, C), out by in, and biases (C,); without ``reweight`` the
    branches are summed unweighted."""

    weight_h: Tensor
    bias_h: Tensor
    weight_w: Tensor
    bias_w: Tensor
    weight_c: Tensor
    weight_proj: Tensor
    bias_proj: Tensor
    reweight: ReweightWeights | None


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
            - 'auto': the fastest, by the rule of :mod:`cyclemlp_mm.ops.cycle_mixer`.

            Defaults to 'auto'.
        residual (Tensor, optional): (B, H, W, C), added to the result: in inference as part of
            the product, which saves a pass over memory.

    Returns:
        Tensor: (B, H, W, C); under autocast in its dtype, as a Linear's output is.

    Raises:
        ValueError: There is no such backend.
        RuntimeError: The backend cannot run on this tensor or machine.
    """
    form = _form(backend, x, weights)
    if form == 'reference':
        y = reference_mixer(x, weights)
        return y if residual is None else residual + y
    return _folded_mixer(x, weights, form, residual)


def reference_mixer(x: Tensor, weights: MixerWeights) -> Tensor:
    """The mixer in the published order of operations: what every faster form must equal.

    Takes a normed map, (B, H, W, C), and returns one of the same shape.
    """
    h = cycle_fc(x, weights.weight_h, weights.bias_h, KERNEL_H)
    w = cycle_fc(x, weights.weight_w, weights.bias_w, KERNEL_W)
    c = F.linear(x, weights.weight_c)
    if weights.reweight is None:
        mixed = h + w + c
    else:
        sum_h, sum_w, sum_c = (sum_over_space(t, accumulate_dtype(c.dtype)) for t in (h, w, c))
        mean = ((sum_h + sum_w + sum_c) / (c.shape[1] * c.shape[2])).to(c.dtype)
        a_h, a_w, a_c = (a[:, None, None, :] for a in branch_weights(mean, weights.reweight))
        if standard_operators_only(x, weights.weight_c):
            mixed = h * a_h + w * a_w + c * a_c
        else:
            # In place where no gradient needs h: memory costs more than multiplying.
            mixed = h * a_h if torch.is_grad_enabled() else h.mul_(a_h)
            mixed.addcmul_(w, a_w).addcmul_(c, a_c)
    return F.linear(mixed, weights.weight_proj, weights.bias_proj)


def branch_weights(mean: Tensor, reweight: ReweightWeights) -> tuple[Tensor, ...]:
    """Weights of the branches, each (B, C), which sum to 1 (arXiv 2107.10224, Sec. 3.3), from the
    mean over space of h + w + c, (B, C)."""
    hidden = F.gelu(F.linear(mean, reweight.weight1, reweight.bias1))
    return softmax_branches(F.linear(hidden, reweight.weight2, reweight.bias2))


def softmax_branches(logits: Tensor, number: int = 3) -> tuple[Tensor, ...]:
    """:func:`branch_weights` of ``number`` branches from the MLP's output, (B, number · C)."""
    # (B, 3C) -> (B, C, 3): adjacent entries are the branches of one channel.
    logits = logits.reshape(logits.shape[0], logits.shape[1] // number, number)
    # Contiguous for each branch: maps are multiplied by them, which with gaps takes thrice as long.
    return logits.softmax(dim=-1).permute(2, 0, 1).contiguous().unbind(0)


def check_backend(backend: str) -> str:
    """Return ``backend``, or raise ValueError if there is none of that name."""
    if backend not in ('auto', *BACKENDS):
        raise ValueError(f"backend must be 'auto' or one of {BACKENDS}, but got {backend!r}")
    return backend


def choose_backend(
    shape: Sequence[int], device: torch.device, dtype: torch.dtype, reweight: bool
) -> str:
    """The form that 'auto' takes, by the rule at the top of this module, for a map of this shape,
    (B, H, W, C), and products in ``dtype``; with ``reweight`` every image has its own matrix."""
    batch, height, width, channels = shape
    tokens = height * width if reweight else batch * height * width
    if device.type not in ('cpu', 'cuda') or tokens * channels <= FOLD_MIN_NUMEL:
        return 'reference'
    bits = min(8 * dtype.itemsize, 32)
    if tokens >= FOLD_PROJECTION_FROM[bits] * channels:
        return 'folded'
    return 'shift' if tokens >= FOLD_BRANCHES_FROM[bits] * channels else 'reference'


def _form(backend: str, x: Tensor, weights: MixerWeights) -> str:
    """The form to run; raises where the backend does not exist or cannot run here."""
    check_backend(backend)
    *tensors, reweight = weights
    if standard_operators_only(x, *tensors, *(reweight or ())):
        return 'reference'
    dtype = compute_dtype(x)
    if backend == 'auto':
        return choose_backend(x.shape, x.device, dtype, reweight is not None)
    if backend == 'triton':
        can_run = find_spec('triton') and dtype in (torch.float32, torch.bfloat16, torch.float16)
        if can_run and x.device.type != 'cuda':
            from .mixer_triton import interpreted

            can_run = interpreted()
        if not can_run:
            raise RuntimeError(
                "backend='triton' needs Triton, a GPU, and float32, bfloat16 or float16, but the "
                f"map is {dtype} on {x.device}: take backend='auto'"
            )
    return backend


def _folded_mixer(x: Tensor, weights: MixerWeights, form: str, residual: Tensor | None) -> Tensor:
    """The mixer by one product per image, and a second one where the projection is left out.

    Products are made in autocast's dtype if it is on; sums, and matrices in training, in float32
    (float64 for float64).
    """
    product_dtype, sum_dtype = compute_dtype(x), accumulate_dtype(x.dtype)
    matrix_dtype = sum_dtype if torch.is_grad_enabled() else product_dtype
    with torch.autocast(x.device.type, enabled=False):
        x = x.contiguous()
        if weights.reweight is None:
            a = torch.ones(1, 3, x.shape[-1], dtype=matrix_dtype, device=x.device)
        else:
            x, means = map_means(x, sum_dtype)
            a = _weigh_branches(means.to(matrix_dtype), weights, weights.reweight)
        matrix = mixer_matrix(a, weights, project=form != 'shift').to(product_dtype)
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


def _weigh_branches(means: Tensor, weights: MixerWeights, reweight: ReweightWeights) -> Tensor:
    """Branch weights, (B, 3, C), from the means of the map and its shifted copies, (B, 3, C)."""
    dtype = means.dtype
    mean_c, mean_h, mean_w = means.unbind(1)
    w_h, b_h, w_w, b_w, w_c = (p.to(dtype) for p in weights[:5])
    mean = F.linear(mean_h, w_h, b_h) + F.linear(mean_w, w_w, b_w) + F.linear(mean_c, w_c)
    cast = ReweightWeights(*(p.to(dtype) for p in reweight))
    return torch.stack(branch_weights(mean, cast), dim=1)


@torch.no_grad()
def fixed_matrix(weights: MixerWeights) -> Tensor:
    """The matrix of a mixer without reweighting, which is the same for all images: (1, C,
    operand_width(C)), float32 or float64, without gradient."""
    proj = weights.weight_proj
    a = torch.ones(1, 3, len(proj), dtype=accumulate_dtype(proj.dtype), device=proj.device)
    return mixer_matrix(a, weights, project=True)


def apply_matrix(x: Tensor, matrix: Tensor, residual: Tensor | None = None) -> Tensor:
    """Mix a map by a matrix of :func:`fixed_matrix`; arguments as of :func:`cycle_mixer`."""
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        residual = None if residual is None else residual.contiguous()
        return shifted_product(x.contiguous().to(dtype), matrix.to(dtype), residual)
