"""LayerNorm, Linear, GELU, Linear and the residual, a cacheful of tokens at a time (CPU).

Made whole, the hidden map of an MLP goes through main memory four times; made in chunks that stay
in the cache, never. Training keeps what enters the GELU, or recomputes it where it is large and the
MLP narrow: that is as cheap as the memory traffic it saves. The limits were measured against plain
modules in float32 and bfloat16, 49 to 25088 tokens of 64 to 768 channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu_linear import add_linear_grad, linear_add, linear_gelu
from .recording import (
    accumulate_dtype,
    chunks,
    compute_dtype,
    differentiated_again,
    gradients,
    needs_grad,
    runs_on_cpu,
    standard_operators_only,
)

#: Bytes of hidden map made at a time, those where it is kept for training, and the least tokens.
HIDDEN_CHUNK_BYTES, KEPT_CHUNK_BYTES, MIN_CHUNK_TOKENS = 2 * 2**20, 16 * 2**20, 1024
#: Hidden maps up to this size are made whole by the plain modules.
PLAIN_MAX_BYTES = 2**20
#: In training, hidden maps from this size on are recomputed by MLPs up to this width.
RECOMPUTE_MIN_BYTES, RECOMPUTE_MAX_CHANNELS = 16 * 2**20, 128


def _chunks(x: Tensor, weight1: Tensor, kept: Tensor | None) -> list[slice]:
    """The tokens of (N, C) that are worked on at a time."""
    most_bytes = HIDDEN_CHUNK_BYTES if kept is None else KEPT_CHUNK_BYTES
    most = max(MIN_CHUNK_TOKENS, most_bytes // (len(weight1) * x.element_size()))
    return [part for _, part in chunks(1, len(x), most)]


def _forward(
    x: Tensor, params: Sequence[Tensor], eps: float, residual: bool, kept: Tensor | None
) -> Tensor:
    """Tokens (N, C) in and out; ``kept`` (N, rC) receives what enters the GELU."""
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = params
    parts = _chunks(x, weight1, kept)
    y = None if len(parts) == 1 else torch.empty_like(x)
    for part in parts:
        chunk = x[part]
        normed = F.layer_norm(chunk, chunk.shape[-1:], norm_weight, norm_bias, eps)
        if kept is None:
            hidden = linear_gelu(normed, weight1, bias1)
        else:
            hidden = F.gelu(torch.addmm(bias1, normed, weight1.mT, out=kept[part]))
        added, out = chunk if residual else None, None if y is None else y[part]
        result = linear_add(hidden, weight2, bias2, added, out)
    return result if y is None else y


def _plain(x: Tensor, eps: float, residual: bool, *params: Tensor) -> Tensor:
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = params
    normed = F.layer_norm(x, (x.shape[-1],), norm_weight, norm_bias, eps)
    y = F.linear(F.gelu(F.linear(normed, weight1, bias1)), weight2, bias2)
    return x + y if residual else y


class _ChunkedMlp(torch.autograd.Function):
    """Saves the tokens, and what enters the GELU unless that is recomputed."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, residual: bool, *params: Tensor) -> Tensor:
        kept = None
        hidden_channels = params[2].shape[0]
        hidden_bytes = x.shape[0] * hidden_channels * x.element_size()
        if x.shape[-1] > RECOMPUTE_MAX_CHANNELS or hidden_bytes < RECOMPUTE_MIN_BYTES:
            kept = x.new_empty(x.shape[0], hidden_channels)
        y = _forward(x, params, eps, residual, kept)
        ctx.eps, ctx.residual = eps, residual
        ctx.save_for_backward(x, kept, *params)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, *params = ctx.saved_tensors
        if differentiated_again(grad_y):
            return gradients(_plain, (x, ctx.eps, ctx.residual, *params), grad_y)
        *norm, weight1, bias1, weight2, _ = params
        grad_y = grad_y.contiguous()
        needs_params = any(ctx.needs_input_grad[3:])
        wanted = [True, needs_params, needs_params]
        parts = _chunks(x, weight1, kept)
        # Sums over chunks are kept in float32.
        dtype = accumulate_dtype(x.dtype) if len(parts) > 1 else x.dtype
        sums = [torch.zeros_like(p, dtype=dtype) for p in params if needs_params]
        grad_x = torch.empty_like(x)
        for part in parts:
            tokens, grad = x[part], grad_y[part]
            shape = tokens.shape[-1:]
            normed, *moments = torch.ops.aten.native_layer_norm(tokens, shape, *norm, ctx.eps)
            entering = torch.addmm(bias1, normed, weight1.mT) if kept is None else kept[part]
            grad_hidden = torch.mm(grad, weight2)
            grad_entering = torch.ops.aten.gelu_backward(grad_hidden, entering)
            grad_normed = torch.mm(grad_entering, weight1)
            grad_tokens, *grad_norm = torch.ops.aten.native_layer_norm_backward(
                grad_normed, tokens, shape, *moments, *norm, wanted
            )
            grad_x[part] = grad_tokens + grad if ctx.residual else grad_tokens
            if needs_params:
                sums[0] += grad_norm[0]
                sums[1] += grad_norm[1]
                add_linear_grad(sums[2], sums[3], grad_entering, normed)
                add_linear_grad(sums[4], sums[5], grad, F.gelu(entering))
        grads = [s.to(x.dtype) for s in sums] if needs_params else [None] * len(params)
        return grad_x, None, None, *grads


def chunked_mlp(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, residual: bool = True
) -> Tensor:
    """``x + fc2(gelu(fc1(norm(x))))`` of x, (..., C), or without ``x +``; in chunks where the map
    inside is large, and under autocast in the dtype that the sum of x and a Linear would have."""
    dtype = compute_dtype(x)
    params = [norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias]
    fits = fc2.weight.shape == fc1.weight.shape[::-1]  # else the layers raise
    if (
        not runs_on_cpu(x)  # whole maps keep a GPU busy
        or not fits
        or standard_operators_only(x, *params)  # before the size is read: it would be fixed
        or x.numel() // x.shape[-1] * fc1.out_features * dtype.itemsize <= PLAIN_MAX_BYTES
    ):
        y = fc2(F.gelu(fc1(norm(x))))
        return x + y if residual else y
    with torch.autocast(x.device.type, enabled=False):
        tokens = x.reshape(-1, x.shape[-1]).to(dtype)
        cast = [p.to(dtype) for p in params]
        # Where x is to stay more precise than the products are, the sum is made outside.
        inside = residual and x.dtype == dtype
        if needs_grad(tokens, *cast):
            y = _ChunkedMlp.apply(tokens, norm.eps, inside, *cast)
        else:
            y = _forward(tokens, cast, norm.eps, inside, None)
        y = y.view(x.shape)
        return x + y if residual and not inside else y
