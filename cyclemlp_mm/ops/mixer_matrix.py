"""The matrix of the mixer: three branches, their weights and the projection, multiplied out.

With the branch weights a known, the mixer is linear in the map (D = diag(a), P the projection):

    y = S_h(x) (P D_h W_h)^T + S_w(x) (P D_w W_w)^T + x (P D_c W_c)^T + const

Its columns are those of :mod:`shifted_operand`: the channels of both shifts that keep their place
are added to the map's own, and the last column is the constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .derivatives import differentiated_again, gradients
from .mixer_weights import MixerWeights
from .shifted_operand import operand_shifts, operand_width


def _stack(a: Tensor, w_h: Tensor, b_h: Tensor, w_w: Tensor, b_w: Tensor, w_c: Tensor) -> Tensor:
    """The weighted branches side by side, (B, C, operand_width(C)), from a (B, 3, C)."""
    channels = w_h.shape[1]
    a_h, a_w, a_c = a[..., None].unbind(1)
    out = a.new_empty(a.shape[0], w_h.shape[0], operand_width(channels))
    own = out[..., :channels]
    own.copy_(w_c * a_c)
    own[..., 0::3].addcmul_(w_h[:, 0::3], a_h).addcmul_(w_w[:, 0::3], a_w)
    for columns, moved, _, dx in operand_shifts(channels):
        weight, scale = (w_h, a_h) if dx else (w_w, a_w)
        out[..., columns] = weight[:, moved] * scale
    out[..., -1] = b_h * a_h[..., 0] + b_w * a_w[..., 0]
    return out


def _unstack(grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of :func:`_stack`'s output those of D_h W_h, D_w W_w, D_c W_c."""
    channels = grad.shape[1]
    grad_c = grad[..., :channels]
    grad_h, grad_w = torch.empty_like(grad_c), torch.empty_like(grad_c)
    grad_h[..., 0::3] = grad_w[..., 0::3] = grad_c[..., 0::3]
    for columns, moved, _, dx in operand_shifts(channels):
        (grad_h if dx else grad_w)[..., moved] = grad[..., columns]
    return grad_h, grad_w, grad_c


def _plain(a: Tensor, *params: Tensor | None) -> Tensor:
    *branches, proj, bias = (p if p is None else p.to(a.dtype) for p in params)
    stacked = _stack(a, *branches)
    if proj is None:
        return stacked
    matrix = torch.matmul(proj, stacked)
    matrix[..., -1] += bias
    return matrix


class _MixerMatrix(torch.autograd.Function):
    """Saves parameters and branch weights only: the (B, C, 7C/3) matrices are made again."""

    @staticmethod
    def forward(ctx, a: Tensor, *params: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, *params)
        return _plain(a, *params)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, *params = ctx.saved_tensors
        if differentiated_again(grad):
            return gradients(_plain, (a, *params), grad)
        *branches, proj, _ = (p if p is None else p.to(a.dtype) for p in params)
        w_h, b_h, w_w, b_w, w_c = branches
        grad_proj = grad_bias = None
        if proj is not None:
            # Images side by side, so that the sum over them is part of the product.
            stacked = _stack(a, *branches)
            grad_proj = grad.transpose(0, 1).flatten(1) @ stacked.transpose(0, 1).flatten(1).mT
            grad_bias = grad[..., -1].sum(0)
            grad = torch.matmul(proj.mT, grad)
        a_h, a_w, a_c = a[..., None].unbind(1)
        grad_h, grad_w, grad_c = _unstack(grad)
        const = grad[..., -1]
        grad_a = torch.stack(
            [
                torch.linalg.vecdot(grad_h, w_h) + const * b_h,
                torch.linalg.vecdot(grad_w, w_w) + const * b_w,
                torch.linalg.vecdot(grad_c, w_c),
            ],
            dim=1,
        )
        grads = (
            (grad_h * a_h).sum(0),
            (const * a_h[..., 0]).sum(0),
            (grad_w * a_w).sum(0),
            (const * a_w[..., 0]).sum(0),
            (grad_c * a_c).sum(0),
            grad_proj,
            grad_bias,
        )
        return grad_a, *(g if g is None else g.to(p.dtype) for g, p in zip(grads, params))


def mixer_matrix(a: Tensor, weights: MixerWeights, project: bool) -> Tensor:
    """The matrix of the mixer, differentiable in everything.

    Args:
        a (Tensor): (B, 3, C) weights of the branches h, w, c; (1, 3, C) if all images share them.
            Its dtype is the one computed in: float32 or float64.
        weights (MixerWeights): Parameters, of any floating dtype.
        project (bool): Whether the projection is folded in: 7/3 C^3 multiply-adds per image.

    Returns:
        Tensor: (B, C, operand_width(C)), out by in; its last column is the constant.
    """
    proj = (weights.weight_proj, weights.bias_proj) if project else (None, None)
    return _MixerMatrix.apply(
        a,
        weights.weight_h,
        weights.bias_h,
        weights.weight_w,
        weights.bias_w,
        weights.weight_c,
        *proj,
    )
