"""The mixer as one product: a shifted operand, made from the map, times a matrix.

A third of the channels of each shifted copy keep their place. Next to the map (C columns), the
operand therefore needs the moved channels alone, 4C/3 columns. With a last column of ones, which
carries the bias, token t's row is

    [x | right: channels 1 mod 3 | left: 2 mod 3 | below: 1 mod 3 | above: 2 mod 3 | 1]

where ``right`` is the value one column further on, and so forth; zero outside the map. The matrix
has these columns of the branches, their weights and the projection multiplied out: with the branch
weights a (D = diag(a)) and the projection P,

    y = S_h(x) (P D_h W_h)^T + S_w(x) (P D_w W_w)^T + x (P D_c W_c)^T + const

The operand is 7/3 times as large as the map. On a CPU it is made for some rows of the map,
multiplied while it is in the cache, and its memory used again; the backward pass makes it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cpu_linear import linear_add
from .recording import chunks, differentiated_again, gradients, needs_grad, runs_on_cpu

if TYPE_CHECKING:
    from .cycle_mixer import MixerWeights

CPU_CHUNK_BYTES = 4 * 2**20  # bytes of operand made at a time


def operand_shifts(channels: int) -> list[tuple[slice, slice, int, int]]:
    """The four groups of moved channels, in the order of their columns, as (columns, moved, dy,
    dx): ``operand[y, x, columns] = map[y + dy, x + dx, moved]``."""
    start, shifts = channels, []
    for residue, dy, dx in ((1, 0, 1), (2, 0, -1), (1, 1, 0), (2, -1, 0)):
        width = len(range(residue, channels, 3))
        shifts.append((slice(start, start + width), slice(residue, None, 3), dy, dx))
        start = start + width  # traced, a size is a tensor: += would change the slices
    return shifts


def operand_width(channels: int) -> int:
    """Columns of the operand, about 7C/3 + 1."""
    return operand_shifts(channels)[-1][0].stop + 1


def _overlap(offset: int, first: int, last: int, size: int) -> tuple[int, int]:
    """The part of first..last (an end outside) that reads inside 0..size at ``offset``."""
    start = max(first, -offset)
    return start, max(start, min(last, size - offset))


def _moved(
    operand: Tensor, x: Tensor, first: int, last: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[int, int, int, int]]]:
    """Of each group: its columns of the operand of some rows, the part of them that is inside the
    map, what that part reads of the map, and the inside part's rows and columns."""
    height, width, channels = x.shape[1:]
    for columns, moved, dy, dx in operand_shifts(channels):
        top, bottom = _overlap(dy, first, last, height)
        left, right = _overlap(dx, 0, width, width)
        group = operand[..., columns]
        inside = group[:, top - first : bottom - first, left:right]
        source = x[:, top + dy : bottom + dy, left + dx : right + dx, moved]
        yield group, inside, source, (top - first, bottom - first, left, right)


def fill_operand(out: Tensor, x: Tensor, first: int, last: int) -> None:
    """Write the operand, (B, last - first, W, operand_width(C)), of the rows ``first`` to ``last``
    (excluded) of a map, (B, H, W, C)."""
    out[..., : x.shape[-1]] = x[:, first:last]
    out[..., -1] = 1
    for group, inside, source, (top, bottom, left, right) in _moved(out, x, first, last):
        inside.copy_(source)
        if top > 0:  # at most one row or column on either side reads outside
            group[:, :top] = 0
        if bottom < last - first:
            group[:, bottom:] = 0
        if left > 0:
            group[:, :, :left] = 0
        if right < x.shape[2]:
            group[:, :, right:] = 0


def _add_operand_grad(grad_x: Tensor, grad_out: Tensor, first: int, last: int) -> None:
    """Add the gradient of :func:`fill_operand`'s output to that of its map."""
    grad_x[:, first:last] += grad_out[..., : grad_x.shape[-1]]
    for _, inside, source, _ in _moved(grad_out, grad_x, first, last):
        source += inside


def _chunks(x: Tensor, shared: bool) -> tuple[list[tuple[slice, slice]], Tensor]:
    """Images and rows of a map, (B, H, W, C), and memory for the largest chunk's operand."""
    batch, height, width, channels = x.shape
    per_row = width * operand_width(channels)
    rows = batch * height
    if runs_on_cpu(x):  # within one image, unless they share the matrix: bmm is slower
        rows = max(1, CPU_CHUNK_BYTES // (per_row * x.element_size()))
        rows = rows if shared else min(rows, height)
    return chunks(batch, height, rows), x.new_empty(min(rows, batch * height) * per_row)


def _operand(x: Tensor, rows: slice, buffer: Tensor) -> Tensor:
    """The operand of some rows, (B, tokens, operand_width(C)), in ``buffer``'s memory."""
    shape = (len(x), rows.stop - rows.start, x.shape[2], operand_width(x.shape[-1]))
    out = buffer[: math.prod(shape)].view(shape)
    fill_operand(out, x, rows.start, rows.stop)
    return out.flatten(1, 2)


def _multiply(x: Tensor, matrix: Tensor, residual: Tensor | None = None) -> Tensor:
    """:func:`shifted_product` without gradients."""
    shared = matrix.shape[0] == 1
    parts, buffer = _chunks(x, shared)
    shape = (*x.shape[:3], matrix.shape[1])
    y = x.new_empty(shape) if len(parts) != 1 or not shared else None
    for images, rows in parts:
        operand = _operand(x[images], rows, buffer)
        added, out = (t if t is None else t[images, rows].flatten(1, 2) for t in (residual, y))
        matrices = matrix if shared else matrix[images]
        if matrices.shape[0] > 1:
            product = torch.bmm(operand, matrices.mT, out=out)
            if added is not None:
                product += added
            continue
        flat = [t if t is None else t.flatten(0, 1) for t in (added, out)]
        product = linear_add(operand.flatten(0, 1), matrices[0], None, *flat)
    return product.view(shape) if y is None else y


def plain_product(x: Tensor, matrix: Tensor) -> Tensor:
    """:func:`shifted_product` of operators that can be differentiated, with the whole operand."""
    operand = x.new_empty(*x.shape[:3], operand_width(x.shape[-1]))
    fill_operand(operand, x, 0, x.shape[1])
    return torch.matmul(operand.flatten(1, 2), matrix.mT).unflatten(1, x.shape[1:3])


class _ShiftedProduct(torch.autograd.Function):
    """Saves the map and the matrix; the operand is made again."""

    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return _multiply(x, matrix)

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        if differentiated_again(grad_y):
            return gradients(plain_product, (x, matrix), grad_y)
        grad_y = grad_y.contiguous()
        shared, grad_x = matrix.shape[0] == 1, torch.zeros_like(x)
        # Sums over chunks are kept in float32.
        grad_matrix = torch.zeros_like(matrix, dtype=torch.promote_types(x.dtype, torch.float32))
        parts, buffer = _chunks(x, shared)
        for images, rows in parts:
            operand = _operand(x[images], rows, buffer)
            grad = grad_y[images, rows].flatten(1, 2)
            matrices = matrix if shared else matrix[images]
            if shared:
                grad_matrix += grad.flatten(0, 1).mT @ operand.flatten(0, 1)
            else:
                grad_matrix[images] += grad.mT @ operand
            # The operand itself is not needed any more: its gradient takes its place.
            if matrices.shape[0] == 1:
                torch.mm(grad.flatten(0, 1), matrices[0], out=operand.flatten(0, 1))
            else:
                torch.bmm(grad, matrices, out=operand)
            grad_operand = operand.unflatten(1, (-1, x.shape[2]))
            _add_operand_grad(grad_x[images], grad_operand, rows.start, rows.stop)
        return grad_x, grad_matrix.to(matrix.dtype)


def shifted_product(x: Tensor, matrix: Tensor, residual: Tensor | None = None) -> Tensor:
    """Multiply the shifted operand of a contiguous map, (B, H, W, C), with a matrix of its dtype,
    (B, C_out, operand_width(C)), or (1, …) for all images; a contiguous ``residual`` is added."""
    if needs_grad(x, matrix):
        y = _ShiftedProduct.apply(x, matrix)
        return y if residual is None else residual + y
    if residual is not None and (residual.requires_grad or residual.dtype != x.dtype):
        return residual + _multiply(x, matrix)
    return _multiply(x, matrix, residual)


def _stack(a: Tensor, w_h: Tensor, b_h: Tensor, w_w: Tensor, b_w: Tensor, w_c: Tensor) -> Tensor:
    """The weighted branches next to each other, (B, C, operand_width(C)), from a (B, 3, C)."""
    channels = w_h.shape[1]
    a_h, a_w, a_c = a[..., None].unbind(1)
    out = a.new_empty(a.shape[0], w_h.shape[0], operand_width(channels))
    out[..., :channels] = w_c * a_c
    out[..., 0:channels:3].addcmul_(w_h[:, 0::3], a_h).addcmul_(w_w[:, 0::3], a_w)
    for columns, moved, _, dx in operand_shifts(channels):
        weight, scale = (w_h, a_h) if dx else (w_w, a_w)
        out[..., columns] = weight[:, moved] * scale
    out[..., -1] = b_h * a_h[..., 0] + b_w * a_w[..., 0]
    return out


def _plain_matrix(a: Tensor, *params: Tensor) -> Tensor:
    """:func:`mixer_matrix` from the parameters of the branches, and of the projection if given."""
    cast = [p.to(a.dtype) for p in params]
    matrix = _stack(a, *cast[:5])
    if len(cast) > 5:
        matrix = torch.matmul(cast[5], matrix)
        matrix[..., -1] += cast[6]
    return matrix


class _MixerMatrix(torch.autograd.Function):
    """Saves parameters and branch weights only: the (B, C, 7C/3) matrices are made again."""

    @staticmethod
    def forward(ctx, a: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(a, *params)
        return _plain_matrix(a, *params)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, *params = ctx.saved_tensors
        if differentiated_again(grad):
            return gradients(_plain_matrix, (a, *params), grad)
        w_h, b_h, w_w, b_w, w_c, *projection = (p.to(a.dtype) for p in params)
        of_projection = []
        if projection:
            # Images side by side, so that the sum over them is part of the product.
            stacked = _stack(a, w_h, b_h, w_w, b_w, w_c).transpose(0, 1).flatten(1)
            of_projection = [grad.transpose(0, 1).flatten(1) @ stacked.mT, grad[..., -1].sum(0)]
            grad = torch.matmul(projection[0].mT, grad)
        # From the gradient of the columns those of D_h W_h, D_w W_w, D_c W_c.
        const, grad_c = grad[..., -1], grad[..., : grad.shape[1]]
        grad_h, grad_w = torch.empty_like(grad_c), torch.empty_like(grad_c)
        grad_h[..., 0::3] = grad_w[..., 0::3] = grad_c[..., 0::3]
        for columns, moved, _, dx in operand_shifts(grad.shape[1]):
            (grad_h if dx else grad_w)[..., moved] = grad[..., columns]
        dot = torch.linalg.vecdot
        of_a = [dot(grad_h, w_h) + const * b_h, dot(grad_w, w_w) + const * b_w, dot(grad_c, w_c)]
        a_h, a_w, a_c = a[..., None].unbind(1)
        branches = ((grad_h, a_h), (grad_w, a_w))
        of_params = [t for g, a in branches for t in ((g * a).sum(0), (const * a[..., 0]).sum(0))]
        of_params += [(grad_c * a_c).sum(0), *of_projection]
        return torch.stack(of_a, 1), *(g.to(p.dtype) for g, p in zip(of_params, params))


def mixer_matrix(a: Tensor, weights: MixerWeights, project: bool) -> Tensor:
    """The matrix of the mixer, (B, C, operand_width(C)), out by in, the last column the constant;
    differentiable. ``a``, (B or 1, 3, C), weighs the branches h, w, c, in the dtype computed in."""
    return _MixerMatrix.apply(a, *weights[: 7 if project else 5])


def sum_over_space(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.sum((1, 2), dtype)`` of (B, H, W, C); bfloat16 on a CPU, which PyTorch would copy first,
    by sums over columns, which are float32 inside and rounded once."""
    if x.dtype == torch.bfloat16 and runs_on_cpu(x):
        return x.sum(dim=1).sum(dim=1, dtype=dtype)
    return x.sum(dim=(1, 2), dtype=dtype)


def _map_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums over space of a map and of its shifted copies along W and H, (B, 3, C): those of a moved
    channel are the map's less the border column or row that it never reads."""
    sums = sum_over_space(x, dtype)[:, None].repeat(1, 3, 1)
    for border, copy, channels in _borders(x):
        sums[:, copy, channels] -= border.sum(dim=1, dtype=dtype)
    return sums


def _borders(x: Tensor) -> Iterator[tuple[Tensor, int, slice]]:
    """The border (B, cells, C / 3) that channels of a shifted copy never read, for each."""
    for copy, columns in ((1, x.transpose(1, 2)), (2, x)):
        for border, first in ((0, 1), (-1, 2)):
            yield columns[:, border, :, first::3], copy, slice(first, None, 3)


class _MapSums(torch.autograd.Function):
    """Also returns the map, so that backward adds both gradients in one pass."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return x.view_as(x), _map_sums(x, dtype)

    @staticmethod
    def backward(ctx, grad_x: Tensor, grad_sums: Tensor) -> tuple[Tensor, None]:
        grad = grad_sums.to(grad_x.dtype)
        grad_x = grad_x + grad.sum(dim=1)[:, None, None, :]
        for border, copy, channels in _borders(grad_x):
            border -= grad[:, copy, None, channels]
        return grad_x, None


def map_means(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Means over space, (B, 3, C), of a map, (B, H, W, C), and of its copies shifted along W and H,
    without making these; also returns ``x``, to be used from here on."""
    if needs_grad(x):
        x, sums = _MapSums.apply(x, dtype)
    else:
        sums = _map_sums(x, dtype)
    return x, sums / (x.shape[1] * x.shape[2])
