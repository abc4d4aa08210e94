"""LayerNorm, Linear, GELU, Linear and the residual, a cacheful of tokens at a time (CPU).

The hidden map of an MLP is r times as large as the map. Made whole, it goes through main memory
four times; made for as many tokens as keep it in the cache, never. Training needs it again in the
backward pass: narrow MLPs make it anew, chunk by chunk, and wide ones, where the matrix product is
the larger part, keep what enters the GELU.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autocast import accumulate_dtype, compute_dtype
from .cpu_linear import linear_add, linear_gelu

#: Bytes of hidden map made at a time.
HIDDEN_CHUNK_BYTES = 2 * 2**20
#: Widest MLP that makes its hidden map again in the backward pass.
RECOMPUTE_MAX_CHANNELS = 128


def _chunks(tokens: int, hidden_channels: int, itemsize: int) -> 'Iterator[slice]':
    """Equal runs of tokens whose hidden map has at most HIDDEN_CHUNK_BYTES (and 64 or more)."""
    size = max(64, HIDDEN_CHUNK_BYTES // (hidden_channels * itemsize))
    parts = max(1, -(-tokens // size))
    size = -(-tokens // parts)
    for first in range(0, tokens, size):
        yield slice(first, min(first + size, tokens))


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> 'tuple[Tensor, Tensor, Tensor]':
    """Normed tokens, their means and reciprocal deviations."""
    return torch.native_layer_norm(x, (x.shape[-1],), weight, bias, eps)


def _forward(
    x: Tensor, params: 'tuple[Tensor, ...]', eps: float, residual: bool, kept: 'Tensor | None'
) -> Tensor:
    """Tokens (N, C) in and out; ``kept`` (N, rC) receives what enters the GELU."""
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = params
    y = torch.empty_like(x)
    for part in _chunks(x.shape[0], weight1.shape[0], x.element_size()):
        tokens = x[part]
        normed = _norm(tokens, norm_weight, norm_bias, eps)[0]
        if kept is None:
            hidden = linear_gelu(normed, weight1, bias1)
        else:
            hidden = F.gelu(torch.addmm(bias1, normed, weight1.mT, out=kept[part]))
        linear_add(hidden, weight2, bias2, tokens if residual else None, y[part])
    return y


class _ChunkedMlp(torch.autograd.Function):
    """Saves the tokens, and what enters the GELU where the MLP is wide."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, residual: bool, *params: Tensor) -> Tensor:
        kept = None
        if x.shape[-1] > RECOMPUTE_MAX_CHANNELS:
            kept = x.new_empty(x.shape[0], params[2].shape[0])
        y = _forward(x, params, eps, residual, kept)
        ctx.eps, ctx.residual = eps, residual
        ctx.save_for_backward(x, kept, *params)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> 'tuple[Tensor | None, ...]':
        x, kept, *params = ctx.saved_tensors
        norm_weight, norm_bias, weight1, bias1, weight2, _ = params
        grad_y = grad_y.contiguous()
        # Sums over chunks are kept in float32.
        dtype = accumulate_dtype(x.dtype)
        sums = [torch.zeros_like(p, dtype=dtype) for p in params]
        needs_params = any(ctx.needs_input_grad[3:])
        grad_x = torch.empty_like(x)
        for part in _chunks(x.shape[0], weight1.shape[0], x.element_size()):
            tokens, grad = x[part], grad_y[part]
            normed, mean, rstd = _norm(tokens, norm_weight, norm_bias, ctx.eps)
            entering = torch.addmm(bias1, normed, weight1.mT) if kept is None else kept[part]
            grad_hidden = torch.mm(grad, weight2)
            grad_entering = torch.ops.aten.gelu_backward(grad_hidden, entering)
            grad_normed = torch.mm(grad_entering, weight1)
            grad_tokens, grad_norm_weight, grad_norm_bias = (
                torch.ops.aten.native_layer_norm_backward(
                    grad_normed, tokens, (tokens.shape[-1],), mean, rstd, norm_weight, norm_bias,
                    [True, needs_params, needs_params],
                )
            )  # fmt: skip
            if ctx.residual:
                torch.add(grad_tokens, grad, out=grad_x[part])
            else:
                grad_x[part] = grad_tokens
            if needs_params:
                hidden = F.gelu(entering)
                _accumulate(sums[0], grad_norm_weight)
                _accumulate(sums[1], grad_norm_bias)
                add_product(sums[2], grad_entering, normed)
                sums[3] += grad_entering.sum(0, dtype=dtype)
                add_product(sums[4], grad, hidden)
                sums[5] += grad.sum(0, dtype=dtype)
        grads = [s.to(p.dtype) for s, p in zip(sums, params)] if needs_params else [None] * 6
        return grad_x, None, None, *grads


def _accumulate(total: Tensor, part: Tensor) -> None:
    total += part


def add_product(total: Tensor, grad: Tensor, tokens: Tensor) -> None:
    """``total += gradᵀ tokens``; ``total`` may be of a more precise dtype."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.mT, tokens)
    else:
        total += grad.mT @ tokens


def chunked_mlp(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, residual: bool = True
) -> Tensor:
    """``x + fc2(gelu(fc1(norm(x))))`` over chunks of tokens.

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
    dtype = compute_dtype(x)
    needs_grad = torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for p in params)
    )
    with torch.autocast(x.device.type, enabled=False):
        tokens = x.reshape(-1, x.shape[-1]).to(dtype)
        params = [p.to(dtype) for p in params]
        # Where x is to stay more precise than the products are, the sum is made outside.
        inside = residual and x.dtype == dtype
        if needs_grad:
            y = _ChunkedMlp.apply(tokens, norm.eps, inside, *params)
        else:
            y = _forward(tokens, params, norm.eps, inside, None)
        y = y.view(x.shape)
        return x + y if residual and not inside else y
