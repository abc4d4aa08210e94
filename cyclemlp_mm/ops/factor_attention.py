"""Factorised attention with convolutional relative positions (MPViT, arXiv 2112.11010, Sec. 3.2;
after CoaT, arXiv 2104.06399, Eq. 4 and 7), its LayerNorm, projection and residual.

Per head of width d: ``y = (d^-0.5 q (softmax_tokens(k)ᵀ v) + q ∘ conv(v)) Pᵀ + p``. The product
``softmax(k)ᵀ v`` is d x d, so no token ever meets another: time and memory are linear in tokens.

What is kept whole is v and conv(v), in one channels-last map per kernel size, so that nothing is
cut out or put together. q, k and the softmax are made for a cacheful of tokens at a time, forward
and again backward; sums over tokens are kept in float32 (float64 for float64), since at detection
sizes a softmax over 60 000 tokens is below what float16 can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu_linear import linear_add
from .mlp_chunks import add_linear_grad
from .recording import (
    accumulate_dtype,
    compute_dtype,
    differentiated_again,
    gradients,
    is_plain_layer,
    needs_grad,
    standard_operators_only,
    without_autocast,
)

#: Bytes of q, k and v made at a time on a CPU.
CHUNK_BYTES = 2 * 2**20


def factor_attention_reference(
    x: Tensor,
    norm: nn.LayerNorm,
    qkv: nn.Linear,
    proj: nn.Linear,
    convs: Sequence[nn.Conv2d],
    heads: int,
) -> Tensor:
    """As :func:`factor_attention` without the residual, plainly: every step on whole maps."""
    return _by_steps(x, norm, qkv, proj, convs, [conv.out_channels for conv in convs], heads)


def _by_steps(
    x: Tensor,
    norm: Callable[[Tensor], Tensor],
    qkv: Callable[[Tensor], Tensor],
    proj: Callable[[Tensor], Tensor],
    convs: Sequence[Callable[[Tensor], Tensor]],
    widths: Sequence[int],
    heads: int,
) -> Tensor:
    """The reference with functions in the place of layers; ``widths`` are those of ``convs``."""
    batch, height, width, channels = x.shape
    q, k, v = qkv(norm(x)).chunk(3, dim=-1)
    parts = v.split(widths, dim=-1)
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
    called = not _as_documented(x.shape[-1], norm, qkv, proj, convs)
    params = []
    if not called:
        params = [norm.weight, norm.bias, qkv.weight, qkv.bias, proj.weight, proj.bias]
        for conv in convs:
            params += [conv.weight, conv.bias]
    if called or standard_operators_only(x, *params):
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
            y = _forward(tokens, _Params(params, heads), norm.eps, inside)[0]
        return x + y if residual and not inside else y


def _as_documented(
    channels: int, norm: nn.Module, qkv: nn.Module, proj: nn.Module, convs: Sequence[nn.Module]
) -> bool:
    """Whether the layers are those that :func:`factor_attention` names, and unchanged."""
    depthwise = dict(stride=(1, 1), dilation=(1, 1), padding_mode='zeros')
    return (
        is_plain_layer(nn.LayerNorm, norm, normalized_shape=(channels,))
        and is_plain_layer(nn.Linear, qkv, proj)
        and qkv.weight.shape == (3 * channels, channels)
        and proj.weight.shape == (channels, channels)
        and is_plain_layer(nn.Conv2d, *convs, **depthwise)
        and all(
            conv.in_channels == conv.out_channels == conv.groups
            and conv.padding == tuple(side // 2 for side in conv.kernel_size)
            for conv in convs
        )
    )


class _Params:
    """The parameters by name, and how the channels are shared out.

    Args:
        params (Sequence[Tensor]): Of norm, qkv and proj, then weight and bias of each convolution.
        heads (int): Number of heads.
    """

    def __init__(self, params: Sequence[Tensor], heads: int) -> None:
        self.norm, (self.qkv, self.qkv_bias, self.proj, self.proj_bias) = params[:2], params[2:6]
        self.convs = [(params[i], params[i + 1]) for i in range(6, len(params), 2)]
        self.channels = self.proj.shape[0]
        self.scale = (self.channels // heads) ** -0.5
        self.groups, first = [], 0
        for weight, _ in self.convs:
            self.groups.append(slice(first, first + weight.shape[0]))
            first = first + weight.shape[0]
        # One product per group of heads, of which the blocks on the diagonal count.
        head = torch.arange(self.channels, device=self.proj.device) // (self.channels // heads)
        self.same_head = [head[g, None] == head[None, g] for g in self.groups]

    def normed(self, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, (self.channels,), *self.norm, eps)

    def q(self, normed: Tensor) -> Tensor:
        c = self.channels
        return F.linear(normed, self.qkv[:c], self.qkv_bias[:c])

    def kv(self, normed: Tensor) -> tuple[Tensor, ...]:
        c = self.channels
        return F.linear(normed, self.qkv[c:], self.qkv_bias[c:]).split(c, dim=-1)


class _Softmax:
    """Softmax over tokens, for tokens that come in parts: largest k, sum of exp, ``softmax(k)ᵀ v``.

    Attributes:
        largest, total (Tensor): (B, 1, C), float32 or float64.
        context (list[Tensor]): (B, c, c) per group, not yet divided by ``total``.
    """

    def __init__(self, batch: int, p: _Params) -> None:
        dtype = accumulate_dtype(p.proj.dtype)
        self.largest = p.proj.new_full((batch, 1, p.channels), -torch.inf, dtype=dtype)
        self.total = torch.zeros_like(self.largest)
        self.context = [
            p.proj.new_zeros(batch, g.stop - g.start, g.stop - g.start, dtype=dtype)
            for g in p.groups
        ]

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
        dtype = self.largest.dtype
        return (k.to(dtype) - self.largest[images]).exp_().div_(self.total[images])


def _chunks(batch: int, tokens: int, p: _Params) -> Iterator[tuple[slice, slice]]:
    """Parts of the batch: some tokens of an image, or some images; on a GPU all at once."""
    if p.proj.device.type != 'cpu':
        yield slice(0, batch), slice(0, tokens)
        return
    size = max(64, CHUNK_BYTES // (3 * p.channels * p.proj.element_size()))
    images = max(1, size // tokens)
    parts = -(-tokens // size)
    step = -(-tokens // parts)
    for i in range(0, batch, images):
        for first in range(0, tokens, step):
            yield slice(i, min(i + images, batch)), slice(first, min(first + step, tokens))


def _tokens(x: Tensor) -> Tensor:
    """(B, c, H, W) in channels-last format, or a copy in it, to (B, N, c)."""
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
    x: Tensor, p: _Params, eps: float, residual: bool
) -> tuple[Tensor, list[Tensor], list[Tensor], _Softmax]:
    """(B, H, W, C) in and out; also v and conv(v) per group, (B, N, c), and the softmax's sums."""
    batch, height = x.shape[:2]
    tokens = x.flatten(1, 2)
    parts = list(_chunks(batch, tokens.shape[1], p))
    v = [x.new_empty(*tokens.shape[:2], g.stop - g.start) for g in p.groups]
    softmax = _Softmax(batch, p)
    for images, part in parts:
        k_part, v_part = p.kv(p.normed(tokens[images, part], eps)[0])
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
        q = p.q(p.normed(chunk, eps)[0])
        seen = _attend(q, [c[images, part] for c in position], [c[images] for c in contexts], p)
        linear_add(
            seen.flatten(0, 1),
            p.proj,
            p.proj_bias,
            chunk.flatten(0, 1) if residual else None,
            y[images, part].flatten(0, 1),
        )
    return y.view(x.shape), v, position, softmax


def _plain(x: Tensor, eps: float, heads: int, residual: bool, *params: Tensor) -> Tensor:
    norm, qkv, proj, *convs = zip(params[::2], params[1::2], strict=True)
    y = _by_steps(
        x,
        lambda t: F.layer_norm(t, t.shape[-1:], *norm, eps),
        lambda t: F.linear(t, *qkv),
        lambda t: F.linear(t, *proj),
        [lambda t, p=p: F.conv2d(t, *p, padding='same', groups=len(p[0])) for p in convs],
        [len(weight) for weight, _ in convs],
        heads,
    )
    return x + y if residual else y


class _FactorAttention(torch.autograd.Function):
    """Saves x, v, conv(v) and sums over tokens; makes q, k and the softmax again."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, heads: int, residual: bool, *params: Tensor) -> Tensor:
        p = _Params(params, heads)
        y, v, position, softmax = _forward(x, p, eps, residual)
        ctx.eps, ctx.heads, ctx.residual, ctx.softmax = eps, heads, residual, softmax
        ctx.save_for_backward(x, *v, *position, *params)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        num_groups = (len(saved) - 6) // 4
        if differentiated_again(grad_y):
            inputs = (x, ctx.eps, ctx.heads, ctx.residual, *saved[2 * num_groups :])
            return gradients(_plain, inputs, grad_y)
        v, position = saved[:num_groups], saved[num_groups : 2 * num_groups]
        p = _Params(saved[2 * num_groups :], ctx.heads)
        back = _Backward(x, p, ctx.eps, ctx.softmax)
        grad_x, grads = back(grad_y.contiguous(), v, position, ctx.residual)
        return grad_x, None, None, None, *grads


class _Backward:
    """Gradients of :func:`_forward`.

    Args:
        x (Tensor): (B, H, W, C).
        p (_Params): Parameters.
        eps (float): Of the norm.
        softmax (_Softmax): Sums over tokens.
    """

    def __init__(self, x: Tensor, p: _Params, eps: float, softmax: _Softmax) -> None:
        self.x, self.p, self.eps, self.softmax = x, p, eps, softmax
        self.tokens = x.flatten(1, 2)
        self.parts = list(_chunks(*self.tokens.shape[:2], p))
        # Sums over tokens are kept in float32.
        self.dtype = accumulate_dtype(x.dtype)
        self.sums = [
            torch.zeros_like(t, dtype=self.dtype)
            for t in (*p.norm, p.qkv, p.qkv_bias, p.proj, p.proj_bias)
        ]

    def __call__(
        self, grad_y: Tensor, v: list[Tensor], position: list[Tensor], residual: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Gradients of x, (B, H, W, C), and of the parameters in their order."""
        grad_y = grad_y.flatten(1, 2)
        grad_normed, grad_position, grad_context = self._through_q(grad_y, position)
        grad_v, conv_grads = self._through_convs(grad_position, v)
        grad_x = self._through_k_and_v(grad_normed, grad_context, v, grad_v)
        if residual:
            grad_x += grad_y
        sums = [s.to(self.x.dtype) for s in self.sums]
        return grad_x.view(self.x.shape), [*sums, *conv_grads]

    def _through_q(
        self, grad_y: Tensor, position: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Back through projection and q: to the normed tokens, conv(v), and the contexts."""
        p, c = self.p, self.p.channels
        contexts = [(m * p.scale).to(self.x.dtype) for m in self.softmax.contexts(p)]
        grad_normed = torch.empty_like(self.tokens)
        grad_position = [torch.empty_like(part) for part in position]
        grad_context = [torch.zeros_like(m, dtype=self.dtype) for m in contexts]
        for images, part in self.parts:
            normed = p.normed(self.tokens[images, part], self.eps)[0]
            q = p.q(normed)
            here = [m[images, part] for m in position]
            there = [m[images] for m in contexts]
            grad = grad_y[images, part]
            self._add_linear(4, slice(None), grad, _attend(q, here, there, p))
            grad_seen = grad @ p.proj
            grad_q = torch.empty_like(q)
            for i, g in enumerate(p.groups):
                grad_position[i][images, part] = grad_seen[..., g] * q[..., g]
                grad_q[..., g] = grad_seen[..., g] * here[i]
                grad_q[..., g] += grad_seen[..., g] @ there[i].mT
                grad_context[i][images] += q[..., g].to(self.dtype).mT @ grad_seen[..., g].to(
                    self.dtype
                )
            self._add_linear(2, slice(0, c), grad_q, normed)
            grad_normed[images, part] = grad_q @ p.qkv[:c]
        for grad, same in zip(grad_context, p.same_head):
            grad.mul_(same).mul_(p.scale)
        return grad_normed, grad_position, grad_context

    def _through_convs(
        self, grad_position: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        height = self.x.shape[1]
        grad_v, conv_grads = [], []
        for grad, v_group, (weight, _) in zip(grad_position, v, self.p.convs):
            padding = [side // 2 for side in weight.shape[2:]]
            # Width of the bias, stride, padding, dilation, transposed, output padding, groups.
            settings = ([len(weight)], [1, 1], padding, [1, 1], False, [0, 0], len(weight))
            images = _image(grad, height), _image(v_group, height)
            grad_image, *grads = torch.ops.aten.convolution_backward(
                *images, weight, *settings, [True, True, True]
            )
            grad_v.append(_tokens(grad_image))
            conv_grads += grads
        return grad_v, conv_grads

    def _through_k_and_v(
        self, grad_normed: Tensor, grad_context: list[Tensor], v: list[Tensor], grad_v: list[Tensor]
    ) -> Tensor:
        """Back through softmax, k, v and norm; ``grad_normed`` is overwritten by the result."""
        p, c = self.p, self.p.channels
        # What the softmax takes off, sum(weights · their gradient), from small matrices alone.
        taken_off = [
            (grad * m).sum(-1).unsqueeze(1)
            for grad, m in zip(grad_context, self.softmax.contexts(p))
        ]
        for images, part in self.parts:
            tokens = self.tokens[images, part]
            normed, mean, rstd = p.normed(tokens, self.eps)
            k = F.linear(normed, p.qkv[c : 2 * c], p.qkv_bias[c : 2 * c])
            weights = self.softmax.weights(images, k)
            grad_kv = torch.empty(*k.shape[:-1], 2 * c, dtype=k.dtype, device=k.device)
            for i, g in enumerate(p.groups):
                grad = grad_context[i][images]
                here = weights[..., g]
                grad_weights = v[i][images, part].to(self.dtype) @ grad.mT
                grad_kv[..., g] = here * grad_weights.sub_(taken_off[i][images])
                grad_kv[..., g.start + c : g.stop + c] = grad_v[i][images, part] + here @ grad
            self._add_linear(2, slice(c, None), grad_kv, normed)
            grad_normed[images, part] += grad_kv @ p.qkv[c:]
            grad_tokens, *grads = torch.ops.aten.native_layer_norm_backward(
                grad_normed[images, part], tokens, (c,), mean, rstd, *p.norm, [True, True, True]
            )
            for total, grad in zip(self.sums, grads):
                total += grad
            grad_normed[images, part] = grad_tokens
        return grad_normed

    def _add_linear(self, which: int, rows: slice, grad: Tensor, tokens: Tensor) -> None:
        """Add to the sums of some rows of a Linear's weight, and of its bias."""
        weight, bias = self.sums[which][rows], self.sums[which + 1][rows]
        add_linear_grad(weight, bias, grad.flatten(0, 1), tokens.flatten(0, 1))
