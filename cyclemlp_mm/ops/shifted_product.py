"""The mixer as one product: a shifted operand, made from the map, times a matrix.

Of each shifted copy of a map, only the channels that do move differ from the map itself: a third
keep their place. Next to the map (C columns), the operand therefore needs the moved channels alone,
4C/3 columns. With a last column of ones, which carries the bias, token t's row is

    [x | right: channels 1 mod 3 | left: 2 mod 3 | below: 1 mod 3 | above: 2 mod 3 | 1]

where ``right`` is the value one column further on, and so forth; zero outside the map. The matrix
has these columns of the branches, their weights and the projection multiplied out: with the branch
weights a (D = diag(a)) and the projection P,

    y = S_h(x) (P D_h W_h)^T + S_w(x) (P D_w W_w)^T + x (P D_c W_c)^T + const

The operand is 7/3 times as large as the map. On a CPU it is therefore made for some rows of the
map, multiplied while it is in the cache, and its memory used again; and in training it is made
again in the backward pass rather than kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .cpu_linear import linear_add, pack_weight
from .recording import differentiated_again, gradients, needs_grad

if TYPE_CHECKING:
    from .cycle_mixer import MixerWeights

#: Bytes of operand made at a time on a CPU.
CPU_CHUNK_BYTES = 4 * 2**20


class Shift(NamedTuple):
    """One group of moved channels.

    Attributes:
        columns (slice): Its columns of the operand.
        channels (slice): The channels of the map it reads.
        dy, dx (int): Where it reads them: ``out[y, x] = map[y + dy, x + dx]``.
    """

    columns: slice
    channels: slice
    dy: int
    dx: int


def operand_shifts(channels: int) -> list[Shift]:
    """The four groups, in the order of their columns; see :func:`cycle_offsets` for the signs."""
    start, shifts = channels, []
    for residue, dy, dx in ((1, 0, 1), (2, 0, -1), (1, 1, 0), (2, -1, 0)):
        width = len(range(residue, channels, 3))
        shifts.append(Shift(slice(start, start + width), slice(residue, None, 3), dy, dx))
        start = start + width  # traced, a size is a tensor: += would change the slices
    return shifts


def operand_width(channels: int) -> int:
    """Columns of the operand, about 7C/3 + 1."""
    return operand_shifts(channels)[-1].columns.stop + 1


def _overlap(offset: int, first: int, last: int, size: int) -> tuple[int, int]:
    """The part of first..last (an end outside) that reads inside 0..size at ``offset``."""
    start = max(first, -offset)
    return start, max(start, min(last, size - offset))


def fill_operand(out: Tensor, x: Tensor, first: int, last: int) -> None:
    """Write the operand of the rows ``first`` to ``last`` (excluded) of a map.

    Args:
        out (Tensor): (B, last - first, W, operand_width(C)); overwritten.
        x (Tensor): (B, H, W, C), of the same dtype or one to be cast to it.
        first, last (int): The rows.
    """
    height, width, channels = x.shape[1:]
    out[..., :channels] = x[:, first:last]
    out[..., -1] = 1
    for columns, moved, dy, dx in operand_shifts(channels):
        top, bottom = _overlap(dy, first, last, height)
        left, right = _overlap(dx, 0, width, width)
        target = out[..., columns]
        target[:, top - first : bottom - first, left:right] = x[
            :, top + dy : bottom + dy, left + dx : right + dx, moved
        ]
        # What reads outside the map is at most one row or column on either side.
        if top > first:
            target[:, : top - first] = 0
        if bottom < last:
            target[:, bottom - first :] = 0
        if left > 0:
            target[:, :, :left] = 0
        if right < width:
            target[:, :, right:] = 0


def _add_operand_grad(grad_x: Tensor, grad_out: Tensor, first: int, last: int) -> None:
    """Add the gradient of :func:`fill_operand`'s output to that of its map."""
    height, width, channels = grad_x.shape[1:]
    grad_x[:, first:last] += grad_out[..., :channels]
    for columns, moved, dy, dx in operand_shifts(channels):
        top, bottom = _overlap(dy, first, last, height)
        left, right = _overlap(dx, 0, width, width)
        grad_x[:, top + dy : bottom + dy, left + dx : right + dx, moved] += grad_out[
            :, top - first : bottom - first, left:right, columns
        ]


class _Chunk(NamedTuple):
    """Some images, or some rows of one, with their part of the operand."""

    images: slice
    first: int
    last: int

    def operand(self, x: Tensor, buffer: Tensor) -> Tensor:
        """(B', tokens, operand_width(C)), in ``buffer``'s memory."""
        x = x[self.images]
        batch, _, width, channels = x.shape
        shape = (batch, self.last - self.first, width, operand_width(channels))
        out = buffer[: torch.Size(shape).numel()].view(shape)
        fill_operand(out, x, self.first, self.last)
        return out.flatten(1, 2)

    def tokens(self, y: Tensor) -> Tensor:
        """The chunk's part of a map (B, H, W, C) as (B', tokens, C), a view."""
        return y[self.images, self.first : self.last].flatten(1, 2)

    def matrix(self, matrix: Tensor) -> Tensor:
        """The chunk's matrices, (B' or 1, C_out, K)."""
        return matrix if matrix.shape[0] == 1 else matrix[self.images]


def _chunks(x: Tensor, shared: bool) -> tuple[list[_Chunk], Tensor]:
    """The chunks of a map, (B, H, W, C), and memory for the largest one's operand.

    Unless the matrix is ``shared`` by all images, a chunk on a CPU is within one image: small
    batched products are slower than a loop.
    """
    batch, height, width, channels = x.shape
    per_row = width * operand_width(channels)
    if x.device.type != 'cpu':
        return [_Chunk(slice(0, batch), 0, height)], x.new_empty(batch * height * per_row)
    rows = max(1, CPU_CHUNK_BYTES // (per_row * x.element_size()))
    if rows < height or not shared:
        images = 1
        # Equal parts rather than full ones and a small rest.
        parts = -(-height // rows)
        rows = -(-height // parts)
    else:
        images, rows = rows // height, height
    chunks = [
        _Chunk(slice(b, min(b + images, batch)), first, min(first + rows, height))
        for b in range(0, batch, images)
        for first in range(0, height, rows)
    ]
    return chunks, x.new_empty(min(images, batch) * rows * per_row)


def _multiply(x: Tensor, matrix: Tensor, residual: Tensor | None = None) -> Tensor:
    """:func:`shifted_product` without gradients."""
    shape = torch.Size((*x.shape[:3], matrix.shape[1]))
    chunks, buffer = _chunks(x, matrix.shape[0] == 1)
    y = x.new_empty(shape) if len(chunks) != 1 or matrix.shape[0] > 1 else None
    packed = {}  # by the first image; of the chunks of one image, all have its matrix
    for chunk in chunks:
        operand = chunk.operand(x, buffer)
        added = None if residual is None else chunk.tokens(residual)
        matrices = chunk.matrix(matrix)
        if matrices.shape[0] > 1:
            out = torch.bmm(operand, matrices.mT, out=chunk.tokens(y))
            if added is not None:
                out += added
            continue
        of = 0 if matrix.shape[0] == 1 else chunk.images.start
        if of not in packed:
            several = len(chunks) > matrix.shape[0]
            packed = {of: pack_weight(matrices[0], operand.shape[1]) if several else matrices[0]}
        operand, added = operand.flatten(0, 1), None if added is None else added.flatten(0, 1)
        if y is None:
            return linear_add(operand, packed[of], None, added).view(shape)
        linear_add(operand, packed[of], None, added, chunk.tokens(y).flatten(0, 1))
    return y


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
        shared = matrix.shape[0] == 1
        grad_x = torch.zeros_like(x)
        # Sums over chunks are kept in float32.
        grad_matrix = torch.zeros_like(matrix, dtype=torch.promote_types(x.dtype, torch.float32))
        chunks, buffer = _chunks(x, shared)
        for chunk in chunks:
            operand, grad = chunk.operand(x, buffer), chunk.tokens(grad_y)
            part = chunk.matrix(grad_matrix)
            if shared:
                part += grad.flatten(0, 1).mT @ operand.flatten(0, 1)
            else:
                part += grad.mT @ operand
            # The operand itself is not needed any more: its gradient takes its place.
            matrices = chunk.matrix(matrix)
            if matrices.shape[0] == 1:
                torch.mm(grad.flatten(0, 1), matrices[0], out=operand.flatten(0, 1))
            else:
                torch.bmm(grad, matrices, out=operand)
            grad_out = operand.unflatten(1, (chunk.last - chunk.first, x.shape[2]))
            _add_operand_grad(grad_x[chunk.images], grad_out, chunk.first, chunk.last)
        return grad_x, grad_matrix.to(matrix.dtype)


def shifted_product(x: Tensor, matrix: Tensor, residual: Tensor | None = None) -> Tensor:
    """Multiply the shifted operand of a map with a matrix.

    Args:
        x (Tensor): (B, H, W, C), contiguous.
        matrix (Tensor): (B, C_out, operand_width(C)), out by in, or (1, …) shared by all images;
            of the dtype of ``x``.
        residual (Tensor, optional): (B, H, W, C_out), contiguous; added.

    Returns:
        Tensor: (B, H, W, C_out).
    """
    if needs_grad(x, matrix):
        y = _ShiftedProduct.apply(x, matrix)
        return y if residual is None else residual + y
    if residual is not None and (residual.requires_grad or residual.dtype != x.dtype):
        return residual + _multiply(x, matrix)
    return _multiply(x, matrix, residual)


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


def _plain_matrix(a: Tensor, *params: Tensor | None) -> Tensor:
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
        return _plain_matrix(a, *params)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, *params = ctx.saved_tensors
        if differentiated_again(grad):
            return gradients(_plain_matrix, (a, *params), grad)
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
        grad_a_h = torch.linalg.vecdot(grad_h, w_h) + const * b_h
        grad_a_w = torch.linalg.vecdot(grad_w, w_w) + const * b_w
        grad_a_c = torch.linalg.vecdot(grad_c, w_c)
        grads = (
            (grad_h * a_h).sum(0),
            (const * a_h[..., 0]).sum(0),
            (grad_w * a_w).sum(0),
            (const * a_w[..., 0]).sum(0),
            (grad_c * a_c).sum(0),
            grad_proj,
            grad_bias,
        )
        grad_a = torch.stack([grad_a_h, grad_a_w, grad_a_c], dim=1)
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
    *branches, proj, bias, _ = weights
    return _MixerMatrix.apply(a, *branches, *((proj, bias) if project else (None, None)))


def sum_over_space(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.sum((1, 2), dtype)`` of (B, H, W, C); where that is slow, by way of sums over columns.

    To add up bfloat16 in another dtype, or to average it, PyTorch first makes a copy of all of it
    on a CPU. A column's sum is made in float32 inside and rounded once; it cannot overflow.
    """
    if x.dtype == torch.bfloat16 and x.device.type == 'cpu':
        return x.sum(dim=1).sum(dim=1, dtype=dtype)
    return x.sum(dim=(1, 2), dtype=dtype)


def _map_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums over space of a map and of its shifted copies along W and H, (B, 3, C).

    A channel read one column to the right never reads the first column, one read to the left never
    the last: its sum is the map's less a border column (or row).
    """
    total = sum_over_space(x, dtype)
    sums = total[:, None].repeat(1, 3, 1)
    sums[:, 1, 1::3] -= x[:, :, 0, 1::3].sum(dim=1, dtype=dtype)
    sums[:, 1, 2::3] -= x[:, :, -1, 2::3].sum(dim=1, dtype=dtype)
    sums[:, 2, 1::3] -= x[:, 0, :, 1::3].sum(dim=1, dtype=dtype)
    sums[:, 2, 2::3] -= x[:, -1, :, 2::3].sum(dim=1, dtype=dtype)
    return sums


class _MapSums(torch.autograd.Function):
    """Also returns the map, so that backward adds both gradients in one pass.

    Its backward is made of differentiable operators.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return x.view_as(x), _map_sums(x, dtype)

    @staticmethod
    def backward(ctx, grad_x: Tensor, grad_sums: Tensor) -> tuple[Tensor, None]:
        grad = grad_sums.to(grad_x.dtype)
        total = grad.sum(dim=1)
        grad_x = grad_x + total[:, None, None, :]
        grad_x[:, :, 0, 1::3] -= grad[:, 1, None, 1::3]
        grad_x[:, :, -1, 2::3] -= grad[:, 1, None, 2::3]
        grad_x[:, 0, :, 1::3] -= grad[:, 2, None, 1::3]
        grad_x[:, -1, :, 2::3] -= grad[:, 2, None, 2::3]
        return grad_x, None


def map_means(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Means over space of a map, (B, H, W, C), and of its shifted copies, without making these.

    Returns:
        tuple[Tensor, Tensor]: ``x``, to be used from here on, and (B, 3, C), of ``dtype``: the
        means of x, of x shifted along W and of x shifted along H.
    """
    if needs_grad(x):
        x, sums = _MapSums.apply(x, dtype)
    else:
        sums = _map_sums(x, dtype)
    return x, sums / (x.shape[1] * x.shape[2])
