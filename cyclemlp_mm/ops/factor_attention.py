"""Factorised attention with convolutional relative positions (MPViT, arXiv 2112.11010, Sec. 3.2;
after CoaT, arXiv 2104.06399, Eq. 4 and 7), its LayerNorm, projection and residual.

Per head of width d: ``y = (d^-0.5 q (softmax_tokens(k)ᵀ v) + q ∘ conv(v)) Pᵀ + p``. The product
``softmax(k)ᵀ v`` is d x d: time and memory are linear in tokens.

v and conv(v) are kept whole, in one channels-last map per kernel size, which needs no slice or
concat copies. q, k and the softmax are made for a cacheful of tokens at a time, forward and again
backward; sums over tokens are kept in float32 (float64 for float64).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu_linear import add_linear_grad, linear_add
from .recording import (
    accumulate_dtype,
    chunks,
    compute_dtype,
    differentiated_again,
    gradients,
    is_plain_layer,
    needs_grad,
    runs_on_cpu,
    standard_operators_only,
    without_autocast,
)

CHUNK_BYTES = 2 * 2**20  # bytes of q, k and v made at a time on a CPU
Layer = Callable[[Tensor], Tensor]


def factor_attention_reference(
    x: Tensor,
    norm: Layer,
    qkv: Layer,
    proj: Layer,
    convs: Sequence[Any],
    heads: int,
    widths: Sequence[int] = (),
) -> Tensor:
    """:func:`factor_attention` without the residual, every step on whole maps; ``widths`` are those
    of ``convs`` if they are functions."""
    batch, height, width, channels = x.shape
    q, k, v = qkv(norm(x)).chunk(3, dim=-1)
    parts = v.split(widths or [conv.out_channels for conv in convs], dim=-1)
    position = torch.cat(
        [conv(p.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for conv, p in zip(convs, parts)], dim=-1
    )
    channels = int(channels)  # traced, a size is a tensor, and its root one of float32
    shape = (batch, height * width, heads, channels // heads)
    with without_autocast(x):
        dtype = accumulate_dtype(q.dtype)
        # Products rather than einsum, which ONNX has from opset 12 on.
        query, key, value = (t.reshape(shape).transpose(1, 2) for t in (q, k, v))
        context = key.to(dtype).softmax(dim=2).transpose(2, 3) @ value.to(dtype)
        context = (context * (channels // heads) ** -0.5).to(q.dtype)
        seen = (query @ context).transpose(1, 2)
    return proj(seen.reshape(x.shape) + q * position)


def factor_attention(
    x: Tensor,
    norm: nn.LayerNorm,
    qkv: nn.Linear,
    proj: nn.Linear,
    convs: Sequence[nn.Conv2d],
    heads: int,
    residual: bool = True,
) -> Tensor:
    """``x + proj(attention(norm(x)))``.

    Args:
        x (Tensor): (B, H, W, C), of any floating dtype.
        norm (nn.LayerNorm): Over C.
        qkv (nn.Linear): C to 3C: q, k and v, each with its heads one after another.
        proj (nn.Linear): C to C.
        convs (Sequence[nn.Conv2d]): Depthwise, with bias, stride 1, same padding; they share out
            the channels of v, each whole heads.
        heads (int): Number of heads; d = C / heads.
        residual (bool): Whether x is added. Defaults to True.

    Returns:
        Tensor: (B, H, W, C); under autocast in the dtype that the sum of x and a Linear would have.
    """
    layers: list[Any] = [norm, qkv, proj, *convs]
    params: list[Tensor] = []
    if _as_documented(x.shape[-1], norm, qkv, proj, convs):
        params = [t for layer in layers for t in (layer.weight, layer.bias)]
    if not params or standard_operators_only(x, *params):
        y = factor_attention_reference(x, norm, qkv, proj, convs, heads)
        return x + y if residual else y
    dtype = compute_dtype(x)
    with without_autocast(x):
        tokens = x.to(dtype).contiguous()
        params = [p.to(dtype) for p in params]
        # Where x is to stay more precise than the products are, the sum is made outside.
        inside = residual and x.dtype == dtype
        if needs_grad(tokens, *params):
            y = _FactorAttention.apply(tokens, norm.eps, heads, inside, *params)
        else:
            y = _forward(tokens, _Params(params, heads, norm.eps), inside)[0]
        return x + y if residual and not inside else y


def _as_documented(
    channels: int, norm: nn.Module, qkv: nn.Linear, proj: nn.Linear, convs: Sequence[nn.Conv2d]
) -> bool:
    """Whether the layers are those that :func:`factor_attention` names, and unchanged."""
    depthwise: dict[str, Any] = dict(stride=(1, 1), dilation=(1, 1), padding_mode='zeros')
    return (
        is_plain_layer(nn.LayerNorm, norm, normalized_shape=(channels,))
        and is_plain_layer(nn.Linear, qkv, proj)
        and (qkv.weight.shape, proj.weight.shape) == ((3 * channels, channels), (channels,) * 2)
        and is_plain_layer(nn.Conv2d, *convs, **depthwise)
        and all(conv.in_channels == conv.out_channels == conv.groups for conv in convs)
        and all(conv.padding == tuple(k // 2 for k in conv.kernel_size) for conv in convs)
    )


class _Params:
    """The parameters by name (of norm, qkv and proj, then of each convolution), and how the
    channels are shared out."""

    def __init__(self, params: Sequence[Tensor], heads: int, eps: float) -> None:
        self.layers, self.eps = params[:6], eps
        *self.norm, self.qkv, self.qkv_bias, self.proj, self.proj_bias = self.layers
        self.convs = list(zip(params[6::2], params[7::2]))
        self.channels = len(self.proj)
        self.scale = (self.channels // heads) ** -0.5
        bounds = itertools.accumulate((len(weight) for weight, _ in self.convs), initial=0)
        self.groups = [slice(*ends) for ends in itertools.pairwise(bounds)]
        # One product per group of heads; only the blocks on the diagonal count.
        head = torch.arange(self.channels, device=self.proj.device) // (self.channels // heads)
        self.same_head = [head[g, None] == head[None, g] for g in self.groups]

    def normed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.native_layer_norm(x, (self.channels,), *self.norm, self.eps)

    def project(self, normed: Tensor, first: int, last: int) -> Tensor:
        """Some of q (0 to 1), k (1 to 2) and v (2 to 3)."""
        rows = slice(first * self.channels, last * self.channels)
        return F.linear(normed, self.qkv[rows], self.qkv_bias[rows])


class _Softmax:
    """Softmax over chunks of tokens: ``largest`` k and ``total`` of exp, (B, 1, C), and ``context``
    per group, ``softmax(k)ᵀ v`` not yet divided by ``total``, (B, c, c); float32 or float64."""

    def __init__(self, batch: int, p: _Params) -> None:
        dtype = accumulate_dtype(p.proj.dtype)
        self.largest = p.proj.new_full((batch, 1, p.channels), -torch.inf, dtype=dtype)
        self.total = torch.zeros_like(self.largest)
        widths = [g.stop - g.start for g in p.groups]
        self.context = [p.proj.new_zeros(batch, width, width, dtype=dtype) for width in widths]

    def add(self, images: slice, k: Tensor, v: Tensor, p: _Params) -> None:
        """Take in the k and v of some tokens, each (b, n, C)."""
        dtype = self.largest.dtype
        largest = torch.maximum(self.largest[images], k.amax(1, keepdim=True).to(dtype))
        correction = (self.largest[images] - largest).exp_()
        weights = (k.to(dtype) - largest).exp_()
        v = v.to(dtype)
        self.largest[images] = largest
        self.total[images] = self.total[images] * correction + weights.sum(1, keepdim=True)
        for context, g in zip(self.context, p.groups):
            context[images] *= correction[..., g].mT
            context[images] += weights[..., g].mT @ v[..., g]

    def contexts(self, p: _Params) -> list[Tensor]:
        """``softmax(k)ᵀ v`` per group, block-diagonal by heads, (B, c, c)."""
        return [
            context.div(self.total[..., g].mT).mul_(same)
            for context, g, same in zip(self.context, p.groups, p.same_head)
        ]

    def weights(self, images: slice, k: Tensor) -> Tensor:
        """The softmax itself, (b, n, C)."""
        k = k.to(self.largest.dtype)
        return (k - self.largest[images]).exp_().div_(self.total[images])


def _chunks(tokens: Tensor) -> list[tuple[slice, slice]]:
    """Some tokens of an image, or some images, of a batch (B, N, C); on a GPU all at once."""
    batch, length, channels = tokens.shape
    most = max(64, CHUNK_BYTES // (3 * channels * tokens.element_size()))
    return chunks(batch, length, most if runs_on_cpu(tokens) else batch * length)


def _tokens(x: Tensor) -> Tensor:
    """(B, c, H, W) to (B, N, c), a view where x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(tokens: Tensor, height: int) -> Tensor:
    """(B, N, c) to (B, c, H, W), a view."""
    return tokens.unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def _attend(q: Tensor, position: list[Tensor], contexts: list[Tensor], p: _Params) -> Tensor:
    """``q · context + q ∘ position`` for some tokens, (b, n, C)."""
    seen = torch.empty_like(q)
    for g, conv_v, context in zip(p.groups, position, contexts):
        torch.mul(q[..., g], conv_v, out=seen[..., g])
        if len(q) == 1:
            seen[0, :, g].addmm_(q[0, :, g], context[0])
        else:
            seen[..., g] += q[..., g] @ context
    return seen


def _forward(
    x: Tensor, p: _Params, residual: bool
) -> tuple[Tensor, list[Tensor], list[Tensor], _Softmax]:
    """(B, H, W, C) in and out; also v and conv(v) per group, (B, N, c), and the softmax's sums."""
    batch, height = x.shape[:2]
    tokens = x.flatten(1, 2)
    parts = _chunks(tokens)
    v = [x.new_empty(*tokens.shape[:2], g.stop - g.start) for g in p.groups]
    softmax = _Softmax(batch, p)
    for images, part in parts:
        kv = p.project(p.normed(tokens[images, part])[0], 1, 3)
        k_part, v_part = kv.split(p.channels, dim=-1)
        softmax.add(images, k_part, v_part, p)
        for v_group, g in zip(v, p.groups):
            v_group[images, part] = v_part[..., g]
    position = [
        _tokens(F.conv2d(_image(v_group, height), *conv, padding='same', groups=len(conv[0])))
        for v_group, conv in zip(v, p.convs)
    ]
    contexts = [(c * p.scale).to(x.dtype) for c in softmax.contexts(p)]
    y = torch.empty_like(tokens)
    for images, part in parts:
        chunk = tokens[images, part]
        q = p.project(p.normed(chunk)[0], 0, 1)
        seen = _attend(q, [c[images, part] for c in position], [c[images] for c in contexts], p)
        added = chunk.flatten(0, 1) if residual else None
        out = y[images, part].flatten(0, 1)
        linear_add(seen.flatten(0, 1), p.proj, p.proj_bias, added, out)
    return y.view(x.shape), v, position, softmax


def _plain(x: Tensor, eps: float, heads: int, residual: bool, *params: Tensor) -> Tensor:
    norm, qkv, proj, *convs = zip(params[::2], params[1::2], strict=True)
    y = factor_attention_reference(
        x,
        lambda t: F.layer_norm(t, t.shape[-1:], *norm, eps),
        lambda t: F.linear(t, *qkv),
        lambda t: F.linear(t, *proj),
        [partial(F.conv2d, weight=w, bias=b, padding='same', groups=len(w)) for w, b in convs],
        heads,
        [len(weight) for weight, _ in convs],
    )
    return x + y if residual else y


class _FactorAttention(torch.autograd.Function):
    """Saves x, v, conv(v) and sums over tokens; makes q, k and the softmax again."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, heads: int, residual: bool, *params: Tensor) -> Tensor:
        y, v, position, ctx.softmax = _forward(x, _Params(params, heads, eps), residual)
        ctx.settings = eps, heads, residual
        ctx.save_for_backward(x, *v, *position, *params)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        groups = (len(saved) - 6) // 4
        v, position, params = saved[:groups], saved[groups : 2 * groups], saved[2 * groups :]
        if differentiated_again(grad_y):
            return gradients(_plain, (x, *ctx.settings, *params), grad_y)
        eps, heads, residual = ctx.settings
        grad_y = grad_y.contiguous()
        grad_x, *grads = _backward(x, grad_y, _Params(params, heads, eps), v, position, ctx.softmax)
        if residual:
            grad_x += grad_y
        return grad_x, None, None, None, *grads


def _backward(
    x: Tensor, grad_y: Tensor, p: _Params, v: list, position: list, softmax: _Softmax
) -> list[Tensor]:
    """Gradients of x, (B, H, W, C), without the residual, and of the parameters in their order."""
    tokens, grad_y = x.flatten(1, 2), grad_y.flatten(1, 2)
    parts, c, dtype = _chunks(tokens), p.channels, accumulate_dtype(x.dtype)
    sums = [torch.zeros_like(param, dtype=dtype) for param in p.layers]

    def add_linear(first: int, rows: slice, grad: Tensor, inputs: Tensor) -> None:
        """Add to the gradients of some rows of a weight, ``sums[first]``, and of its bias."""
        weight, bias = sums[first][rows], sums[first + 1][rows]
        add_linear_grad(weight, bias, grad.flatten(0, 1), inputs.flatten(0, 1))

    # Through projection and q: to the normed tokens, conv(v), and the contexts.
    contexts = softmax.contexts(p)
    scaled = [(m * p.scale).to(x.dtype) for m in contexts]
    grad_normed = torch.empty_like(tokens)
    grad_position = [torch.empty_like(m) for m in position]
    grad_context = [torch.zeros_like(m) for m in contexts]
    for images, part in parts:
        normed = p.normed(tokens[images, part])[0]
        q, grad = p.project(normed, 0, 1), grad_y[images, part]
        here, there = [m[images, part] for m in position], [m[images] for m in scaled]
        add_linear(4, slice(None), grad, _attend(q, here, there, p))
        grad_seen, grad_q = grad @ p.proj, torch.empty_like(q)
        for i, g in enumerate(p.groups):
            q_group, grad_group = q[..., g], grad_seen[..., g]
            grad_position[i][images, part] = grad_group * q_group
            grad_q[..., g] = grad_group * here[i]
            grad_q[..., g] += grad_group @ there[i].mT
            grad_context[i][images] += q_group.to(dtype).mT @ grad_group.to(dtype)
        add_linear(2, slice(0, c), grad_q, normed)
        grad_normed[images, part] = grad_q @ p.qkv[:c]
    for grad, same in zip(grad_context, p.same_head):
        grad.mul_(same).mul_(p.scale)

    # Through softmax, k, v and norm; the gradient of the tokens takes the place of grad_normed.
    grad_v, conv_grads = [], []
    for grad, v_group, (weight, _) in zip(grad_position, v, p.convs):
        maps = _image(grad, x.shape[1]), _image(v_group, x.shape[1])
        padding = [side // 2 for side in weight.shape[2:]]
        # Width of the bias, stride, padding, dilation, transposed, output padding, groups.
        settings = ([len(weight)], [1, 1], padding, [1, 1], False, [0, 0], len(weight))
        grad_image, *params = torch.ops.aten.convolution_backward(
            *maps, weight, *settings, [True, True, True]
        )
        grad_v.append(_tokens(grad_image))
        conv_grads += params
    # What the softmax takes off, sum(weights · their gradient), comes from small matrices alone.
    taken_off = [(grad * m).sum(-1).unsqueeze(1) for grad, m in zip(grad_context, contexts)]
    for images, part in parts:
        chunk = tokens[images, part]
        normed, *moments = p.normed(chunk)
        weights = softmax.weights(images, p.project(normed, 1, 2))
        grad_kv = chunk.new_empty(*chunk.shape[:-1], 2 * c)
        for i, g in enumerate(p.groups):
            grad, weight = grad_context[i][images], weights[..., g]
            grad_weights = v[i][images, part].to(dtype) @ grad.mT
            grad_kv[..., g] = weight * grad_weights.sub_(taken_off[i][images])
            grad_kv[..., g.start + c : g.stop + c] = grad_v[i][images, part] + weight @ grad
        add_linear(2, slice(c, None), grad_kv, normed)
        grad_normed[images, part] += grad_kv @ p.qkv[c:]
        grad_chunk, *grad_norm = torch.ops.aten.native_layer_norm_backward(
            grad_normed[images, part], chunk, (c,), *moments, *p.norm, [True, True, True]
        )
        sums[0] += grad_norm[0]
        sums[1] += grad_norm[1]
        grad_normed[images, part] = grad_chunk
    return [grad_normed.view(x.shape), *(s.to(x.dtype) for s in sums), *conv_grads]
