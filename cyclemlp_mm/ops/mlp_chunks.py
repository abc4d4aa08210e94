"""LayerNorm, Linear, GELU, Linear and the residual, a cacheful of tokens at a time (CPU).

The hidden map of an MLP is r times as large as the map. Made whole, it goes through main memory
four times; made for as many tokens as keep it in the cache, never. Training keeps what enters the
GELU, or, where that is large and the MLP narrow, recomputes it in the backward pass, chunk by
chunk: recomputing is as cheap as the memory traffic it saves.

Which way is taken follows from the size of the hidden map; the limits were measured against plain
modules in float32 and bfloat16, from 49 to 25088 tokens of 64 to 768 channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu_linear import linear_add, linear_gelu, pack_weight
from .recording import (
    accumulate_dtype,
    compute_dtype,
    differentiated_again,
    gradients,
    needs_grad,
    standard_operators_only,
)

#: Bytes of hidden map made at a time, and the tokens that are made at a time in any case.
HIDDEN_CHUNK_BYTES, MIN_CHUNK_TOKENS = 2 * 2**20, 1024
#: The same in training where the hidden map is kept: chunks only bound what is made next to it.
KEPT_CHUNK_BYTES = 16 * 2**20
#: Hidden maps up to this size are made whole by the plain modules.
PLAIN_MAX_BYTES = 2**20
#: In training, hidden maps from this size on are recomputed by MLPs up to this width.
RECOMPUTE_MIN_BYTES, RECOMPUTE_MAX_CHANNELS = 16 * 2**20, 128
#: Products with one weight from which on it is packed for them.
PACK_MIN_CHUNKS = 4


def _chunks(tokens: int, hidden_channels: int, itemsize: int, most_bytes: int) -> list[slice]:
    """Equal runs of tokens whose hidden map has at most ``most_bytes``, or of the fewest tokens."""
    size = max(MIN_CHUNK_TOKENS, most_bytes // (hidden_channels * itemsize))
    parts = max(1, -(-tokens // size))
    size = -(-tokens // parts)
    return [slice(first, min(first + size, tokens)) for first in range(0, tokens, size)]


def _forward(
    x: Tensor, params: tuple[Tensor, ...], eps: float, residual: bool, kept: Tensor | None
) -> Tensor:
    """Tokens (N, C) in and out; ``kept`` (N, rC) receives what enters the GELU."""
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = params
    most_bytes = HIDDEN_CHUNK_BYTES if kept is None else KEPT_CHUNK_BYTES
    parts = _chunks(x.shape[0], weight1.shape[0], x.element_size(), most_bytes)
    y = torch.empty_like(x) if len(parts) > 1 else None
    if len(parts) >= PACK_MIN_CHUNKS:
        tokens = parts[0].stop
        weight1 = pack_weight(weight1, tokens) if kept is None else weight1
        weight2 = pack_weight(weight2, tokens)
    for part in parts:
        tokens = x[part]
        normed = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps)
        if kept is None:
            hidden = linear_gelu(normed, weight1, bias1)
        else:
            hidden = F.gelu(torch.addmm(bias1, normed, weight1.mT, out=kept[part]))
        added = tokens if residual else None
        if y is None:
            return linear_add(hidden, weight2, bias2, added)
        linear_add(hidden, weight2, bias2, added, y[part])
    return y


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
        most_bytes = HIDDEN_CHUNK_BYTES if kept is None else KEPT_CHUNK_BYTES
        parts = _chunks(x.shape[0], weight1.shape[0], x.element_size(), most_bytes)
        # Sums over chunks are kept in float32.
        dtype = accumulate_dtype(x.dtype) if len(parts) > 1 else x.dtype
        sums = [torch.zeros_like(p, dtype=dtype) for p in params] if needs_params else [None] * 6
        grad_x = torch.empty_like(x)
        for part in parts:
            tokens, grad = x[part], grad_y[part]
            normed, *moments = torch.native_layer_norm(tokens, tokens.shape[-1:], *norm, ctx.eps)
            entering = torch.addmm(bias1, normed, weight1.mT) if kept is None else kept[part]
            grad_hidden = torch.mm(grad, weight2)
            grad_entering = torch.ops.aten.gelu_backward(grad_hidden, entering)
            grad_normed = torch.mm(grad_entering, weight1)
            grad_tokens, *grad_norm = torch.ops.aten.native_layer_norm_backward(
                grad_normed, tokens, tokens.shape[-1:], *moments, *norm, wanted
            )
            if ctx.residual:
                torch.add(grad_tokens, grad, out=grad_x[part])
            else:
                grad_x[part] = grad_tokens
            if needs_params:
                sums[0] += grad_norm[0]
                sums[1] += grad_norm[1]
                add_linear_grad(sums[2], sums[3], grad_entering, normed)
                add_linear_grad(sums[4], sums[5], grad, F.gelu(entering))
        return grad_x, None, None, *(s if s is None else s.to(x.dtype) for s in sums)


def add_linear_grad(weight: Tensor, bias: Tensor, grad: Tensor, tokens: Tensor) -> None:
    """Add to the gradients of a Linear's parameters, which may be of a more precise dtype.

    Args:
        weight (Tensor): (C_out, C_in), gradient of the weight; added to.
        bias (Tensor): (C_out,), gradient of the bias; added to.
        grad (Tensor): (N, C_out), gradient of the Linear's output.
        tokens (Tensor): (N, C_in), its input.
    """
    if weight.dtype == grad.dtype:
        weight.addmm_(grad.mT, tokens)
    else:
        weight += grad.mT @ tokens
    bias += grad.sum(0, dtype=bias.dtype)


def _hidden_bytes(x: Tensor, fc1: nn.Linear) -> int:
    return x.numel() // x.shape[-1] * fc1.out_features * compute_dtype(x).itemsize


def chunked_mlp(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, residual: bool = True
) -> Tensor:
    """``x + fc2(gelu(fc1(norm(x))))``, over chunks of tokens where the hidden map is large.

    Args:
        x (Tensor): (..., C), of any floating dtype.
        norm (nn.LayerNorm): Over C.
        fc1 (nn.Linear): C to rC.
        fc2 (nn.Linear): rC to C.
        residual (bool): Whether x is added. Defaults to True.

    Returns:
        Tensor: (..., C); under autocast in the dtype that the sum of x and a Linear would have.
    """
    params = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    fits = fc2.weight.shape == fc1.weight.shape[::-1]  # else the layers raise
    if (
        x.device.type != 'cpu'  # whole maps keep a GPU busy
        or not fits
        or standard_operators_only(x, *params)  # before the size is read: it would be fixed
        or _hidden_bytes(x, fc1) <= PLAIN_MAX_BYTES
    ):
        y = fc2(F.gelu(fc1(norm(x))))
        return x + y if residual else y
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        tokens = x.reshape(-1, x.shape[-1]).to(dtype)
        params = [p.to(dtype) for p in params]
        # Where x is to stay more precise than the products are, the sum is made outside.
        inside = residual and x.dtype == dtype
        if needs_grad(tokens, *params):
            y = _ChunkedMlp.apply(tokens, norm.eps, inside, *params)
        else:
            y = _forward(tokens, params, norm.eps, inside, None)
        y = y.view(x.shape)
        return x + y if residual and not inside else y
