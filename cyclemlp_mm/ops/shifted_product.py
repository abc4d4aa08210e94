"""The product of the shifted operand with a matrix, made from the map, a cacheful at a time.

The operand is 7/3 times as large as the map. On a CPU it is therefore made for some rows of the
map, multiplied while it is in the cache, and its memory used again; and in training it is made
again in the backward pass rather than kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu_linear import linear_add, pack_weight
from .derivatives import differentiated_again, gradients
from .shifted_operand import add_operand_grad, fill_operand, operand_width

#: Bytes of operand made at a time on a CPU.
CPU_CHUNK_BYTES = 4 * 2**20


class Chunk:
    """Some images, or some rows of one, with their part of the operand."""

    def __init__(self, images: slice, first: int, last: int) -> None:
        self.images, self.first, self.last = images, first, last

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


def chunks(x: Tensor, shared: bool) -> tuple[list[Chunk], int]:
    """Cut a map into chunks.

    Args:
        x (Tensor): (B, H, W, C).
        shared (bool): Whether all images have the same matrix. Where they have not, a chunk on a
            CPU is within one image: small batched products are slower than a loop.

    Returns:
        tuple: The chunks, and the elements of the largest one's operand.
    """
    batch, height, width, channels = x.shape
    per_row = width * operand_width(channels)
    if x.device.type != 'cpu':
        return [Chunk(slice(0, batch), 0, height)], batch * height * per_row
    rows = max(1, CPU_CHUNK_BYTES // (per_row * x.element_size()))
    if rows < height or not shared:
        # Equal parts rather than full ones and a small rest.
        parts = -(-height // rows)
        rows = -(-height // parts)
        cut = [
            Chunk(slice(b, b + 1), first, min(first + rows, height))
            for b in range(batch)
            for first in range(0, height, rows)
        ]
        return cut, rows * per_row
    images = rows // height
    cut = [Chunk(slice(b, min(b + images, batch)), 0, height) for b in range(0, batch, images)]
    return cut, min(images, batch) * height * per_row


def multiply(x: Tensor, matrix: Tensor, residual: Tensor | None = None) -> Tensor:
    """:func:`shifted_product` without gradients."""
    shape = torch.Size((*x.shape[:3], matrix.shape[1]))
    cut, size = chunks(x, matrix.shape[0] == 1)
    buffer = x.new_empty(size)
    y = x.new_empty(shape) if len(cut) != 1 or matrix.shape[0] > 1 else None
    packed = {}  # by the first image; of the chunks of one image, all have its matrix
    for chunk in cut:
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
            several = len(cut) > matrix.shape[0]
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


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """(B, N, K) by (B or 1, K, C) into ``out``: one product where the matrix is shared."""
    if right.shape[0] == 1:
        torch.mm(left.flatten(0, 1), right[0], out=out.flatten(0, 1))
    else:
        torch.bmm(left, right, out=out)


class _ShiftedProduct(torch.autograd.Function):
    """Saves the map and the matrix; the operand is made again."""

    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return multiply(x, matrix)

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        x, matrix = ctx.saved_tensors
        if differentiated_again(grad_y):
            return gradients(plain_product, (x, matrix), grad_y)
        grad_y = grad_y.contiguous()
        shared = matrix.shape[0] == 1
        grad_x = torch.zeros_like(x)
        # Sums over chunks are kept in float32.
        grad_matrix = torch.zeros_like(matrix, dtype=torch.promote_types(x.dtype, torch.float32))
        cut, size = chunks(x, shared)
        buffer = x.new_empty(size)
        for chunk in cut:
            operand, grad = chunk.operand(x, buffer), chunk.tokens(grad_y)
            part = chunk.matrix(grad_matrix)
            if shared:
                part += grad.flatten(0, 1).mT @ operand.flatten(0, 1)
            else:
                part += grad.mT @ operand
            # The operand itself is not needed any more: its gradient takes its place.
            _matmul(grad, chunk.matrix(matrix), operand)
            rows = chunk.last - chunk.first
            add_operand_grad(
                grad_x[chunk.images],
                operand.unflatten(1, (rows, x.shape[2])),
                chunk.first,
                chunk.last,
            )
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
    if torch.is_grad_enabled() and (x.requires_grad or matrix.requires_grad):
        y = _ShiftedProduct.apply(x, matrix)
        return y if residual is None else residual + y
    if residual is not None and (residual.requires_grad or residual.dtype != x.dtype):
        return residual + multiply(x, matrix)
    return multiply(x, matrix, residual)
