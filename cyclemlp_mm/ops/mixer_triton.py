"""The folded mixer's product as Triton kernels: the shifted operand is read, never made.

The kernels load a tile of the map and its neighbours (from the cache, after the first) and take
each channel from the one it is read at. The matrix of :mod:`shifted_product` is spread to three
C x C blocks: a tensor core's time is cheaper than loads that skip channels. Importing this module
needs Triton; its own switch ``TRITON_INTERPRET=1`` runs the kernels on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .recording import differentiated_again, gradients
from .shifted_product import operand_shifts, plain_product

MAX_SPLITS = 16  # of the sum over tokens of the matrix's gradient


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter."""
    return not isinstance(_forward_kernel, triton.runtime.JITFunction)


@triton.jit
def _add_dot(acc, left, right, PRECISION: tl.constexpr):
    """acc + left right, in float32."""
    if PRECISION == 'widened':
        acc = tl.dot(left.to(tl.float32), right.to(tl.float32), acc, input_precision='ieee')
    else:
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _neighbours(base, tokens, channels, n_tokens, width, height, n_channels):
    """Tiles of a map and of its two shifted copies, (tokens, channels) each."""
    row, column = tokens // width, tokens % width
    inside = (tokens < n_tokens)[:, None] & (channels < n_channels)[None, :]
    place = base + tokens[:, None] * n_channels + channels[None, :]
    line = width * n_channels
    here = tl.load(place, mask=inside, other=0.0)
    right = tl.load(place + n_channels, mask=inside & (column + 1 < width)[:, None], other=0.0)
    left = tl.load(place - n_channels, mask=inside & (column > 0)[:, None], other=0.0)
    below = tl.load(place + line, mask=inside & (row + 1 < height)[:, None], other=0.0)
    above = tl.load(place - line, mask=inside & (row > 0)[:, None], other=0.0)
    # Channels that keep their place have no weight in the shifted blocks: any value will do.
    forward = (channels % 3 == 1)[None, :]
    return here, tl.where(forward, right, left), tl.where(forward, below, above)


@triton.jit
def _forward_kernel(
    x, matrix, const, y, height, width, matrix_stride, const_stride,
    C: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = here M_0^T + along-W M_1^T + along-H M_2^T + const, for one tile of one image."""
    image = tl.program_id(2).to(tl.int64)
    n_tokens = height * width
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    outs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x += image * n_tokens * C
    matrix += image * matrix_stride
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, C, BLOCK_K):
        channels = start + tl.arange(0, BLOCK_K)
        here, along_w, along_h = _neighbours(x, tokens, channels, n_tokens, width, height, C)
        # (K, N) tiles of the out-by-in matrix: read transposed.
        place = matrix + outs[None, :] * (3 * C) + channels[:, None]
        mask = (channels < C)[:, None] & (outs < OUT)[None, :]
        acc = _add_dot(acc, here, tl.load(place, mask=mask, other=0.0), PRECISION)
        acc = _add_dot(acc, along_w, tl.load(place + C, mask=mask, other=0.0), PRECISION)
        acc = _add_dot(acc, along_h, tl.load(place + 2 * C, mask=mask, other=0.0), PRECISION)
    acc += tl.load(const + image * const_stride + outs, mask=outs < OUT, other=0.0)[None, :]
    place = y + image * n_tokens * OUT + tokens[:, None] * OUT + outs[None, :]
    mask = (tokens < n_tokens)[:, None] & (outs < OUT)[None, :]
    tl.store(place, acc.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _grad_x_kernel(
    grad_y, matrix, grad_x, height, width, matrix_stride,
    C: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, N_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradient of the map, for one tile of the channels of one residue modulo 3, which all give
    their gradient back at the same position: one column to the left if read one to the right."""
    image = tl.program_id(2).to(tl.int64)
    residue = tl.program_id(1) // N_BLOCKS
    n_tokens = height * width
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, column = tokens // width, tokens % width
    channels = residue + 3 * ((tl.program_id(1) % N_BLOCKS) * BLOCK_N + tl.arange(0, BLOCK_N))
    grad_y += image * n_tokens * OUT
    matrix += image * matrix_stride
    # 0, +1, -1 for the residues 0, 1, 2.
    step = tl.where(residue == 2, -1, residue)
    in_map = tokens < n_tokens
    in_w = in_map & (column - step >= 0) & (column - step < width) & (residue > 0)
    in_h = in_map & (row - step >= 0) & (row - step < height) & (residue > 0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, OUT, BLOCK_K):
        outs = start + tl.arange(0, BLOCK_K)
        inside = (outs < OUT)[None, :]
        place = grad_y + tokens[:, None] * OUT + outs[None, :]
        weight = matrix + outs[:, None] * (3 * C) + channels[None, :]
        mask = (outs < OUT)[:, None] & (channels < C)[None, :]
        here = tl.load(place, mask=in_map[:, None] & inside, other=0.0)
        acc = _add_dot(acc, here, tl.load(weight, mask=mask, other=0.0), PRECISION)
        if residue > 0:
            near = tl.load(place - step * OUT, mask=in_w[:, None] & inside, other=0.0)
            acc = _add_dot(acc, near, tl.load(weight + C, mask=mask, other=0.0), PRECISION)
            above = tl.load(place - step * width * OUT, mask=in_h[:, None] & inside, other=0.0)
            acc = _add_dot(acc, above, tl.load(weight + 2 * C, mask=mask, other=0.0), PRECISION)
    place = grad_x + image * n_tokens * C + tokens[:, None] * C + channels[None, :]
    mask = in_map[:, None] & (channels < C)[None, :]
    tl.store(place, acc.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def _grad_matrix_kernel(
    x, grad_y, parts, height, width, tokens_per_part,
    C: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of the matrix over some tokens of one image: (SPLITS, OUT, 3C) per image."""
    image = tl.program_id(2).to(tl.int64) // SPLITS
    split = tl.program_id(2) % SPLITS
    n_tokens = height * width
    outs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x += image * n_tokens * C
    grad_y += image * n_tokens * OUT
    acc_c = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    acc_w = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    acc_h = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    first = split * tokens_per_part
    for start in range(0, tokens_per_part, BLOCK_K):
        tokens = first + start + tl.arange(0, BLOCK_K)
        # A part's last tile may reach into the next part.
        tokens = tl.where(tokens < first + tokens_per_part, tokens, n_tokens)
        here, along_w, along_h = _neighbours(x, tokens, channels, n_tokens, width, height, C)
        mask = (tokens < n_tokens)[None, :] & (outs < OUT)[:, None]
        grad = tl.load(grad_y + tokens[None, :] * OUT + outs[:, None], mask=mask, other=0.0)
        acc_c = _add_dot(acc_c, grad, here, PRECISION)
        acc_w = _add_dot(acc_w, grad, along_w, PRECISION)
        acc_h = _add_dot(acc_h, grad, along_h, PRECISION)
    place = parts + tl.program_id(2).to(tl.int64) * (OUT * 3 * C)
    place += outs[:, None] * (3 * C) + channels[None, :]
    mask = (outs < OUT)[:, None] & (channels < C)[None, :]
    tl.store(place, acc_c, mask=mask)
    tl.store(place + C, acc_w, mask=mask)
    tl.store(place + 2 * C, acc_h, mask=mask)


def _spread(matrix: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(B or 1, OUT, operand_width(C)) without its last column to (B or 1, OUT, 3C), zeros between;
    and the steps from image to image in it and in the last column, 0 where one is for all."""
    outs = channels = matrix.shape[1]
    spread = matrix.new_zeros(*matrix.shape[:2], 3 * channels)
    spread[..., :channels] = matrix[..., :channels]
    for columns, moved, _, dx in operand_shifts(channels):
        block = spread[..., channels : 2 * channels] if dx else spread[..., 2 * channels :]
        block[..., moved] = matrix[..., columns]
    return spread, (0, 0) if len(matrix) == 1 else (spread.stride(0), outs)


def _precision(x: Tensor) -> str:
    if x.dtype == torch.bfloat16 and interpreted():
        return 'widened'  # the interpreter multiplies bfloat16's bits as integers
    # float32 means float32: TF32 keeps 10 bits.
    return 'ieee'


class _TritonProduct(torch.autograd.Function):
    """Saves the map and the matrix."""

    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        outs = matrix.shape[1]
        spread, strides = _spread(matrix)
        const = matrix[..., -1].float().contiguous()
        y = x.new_empty(batch, height, width, outs)
        block_n = 64 if outs <= 64 else 128
        grid = (triton.cdiv(height * width, 128), triton.cdiv(outs, block_n), batch)
        _forward_kernel[grid](
            x, spread, const, y, height, width, *strides,
            C=channels, OUT=outs, PRECISION=_precision(x),
            BLOCK_M=128, BLOCK_N=block_n, BLOCK_K=32, num_warps=8,
        )  # fmt: skip
        ctx.save_for_backward(x, matrix)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        if differentiated_again(grad_y):
            return gradients(plain_product, (x, matrix), grad_y)
        grad_y = grad_y.contiguous()
        grad_x = _grad_x(x, matrix, grad_y) if ctx.needs_input_grad[0] else None
        grad_matrix = _grad_matrix(x, matrix, grad_y) if ctx.needs_input_grad[1] else None
        return grad_x, grad_matrix


def _grad_x(x: Tensor, matrix: Tensor, grad_y: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    spread, (stride, _) = _spread(matrix)
    grad_x = torch.empty_like(x)
    per_residue = triton.cdiv(channels, 3)
    block_n = 32 if per_residue <= 32 else 64 if per_residue <= 64 else 128
    n_blocks = triton.cdiv(per_residue, block_n)
    grid = (triton.cdiv(height * width, 128), 3 * n_blocks, batch)
    _grad_x_kernel[grid](
        grad_y, spread, grad_x, height, width, stride,
        C=channels, OUT=matrix.shape[1], PRECISION=_precision(x),
        BLOCK_M=128, BLOCK_N=block_n, BLOCK_K=32, N_BLOCKS=n_blocks, num_warps=8,
    )  # fmt: skip
    return grad_x


def _grad_matrix(x: Tensor, matrix: Tensor, grad_y: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    outs, tokens = matrix.shape[1], height * width
    # Parts are summed by PyTorch: the same result every time, which atomic additions do not give.
    splits = min(MAX_SPLITS, triton.cdiv(tokens, 512))
    parts = x.new_empty(batch, splits, outs, 3 * channels, dtype=torch.float32)
    grid = (triton.cdiv(outs, 64), triton.cdiv(channels, 64), batch * splits)
    _grad_matrix_kernel[grid](
        x, grad_y, parts, height, width, triton.cdiv(tokens, splits),
        C=channels, OUT=outs, PRECISION=_precision(x), SPLITS=splits,
        BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, num_warps=4,
    )  # fmt: skip
    center, *shifted = parts.sum(1).split(channels, dim=-1)
    moved = [shifted[dx == 0][..., moved] for _, moved, _, dx in operand_shifts(channels)]
    const = grad_y.sum(dim=(1, 2), dtype=torch.float32)[..., None]
    grad = torch.cat([center, *moved, const], dim=-1)
    if matrix.shape[0] == 1:
        grad = grad.sum(0, keepdim=True)
    return grad.to(matrix.dtype)


def triton_product(x: Tensor, matrix: Tensor) -> Tensor:
    """``shifted_product`` of contiguous x, (B, H, W, C), in float32, bfloat16 or float16, and a
    matrix, (B or 1, C, operand_width(C)), of the same dtype, by Triton kernels."""
    return _TritonProduct.apply(x, matrix)
