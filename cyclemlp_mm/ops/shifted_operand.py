"""The operand whose product with one matrix is the whole mixer.

Of each shifted copy of a map, only the channels that do move differ from the map itself: a third
keep their place. Next to the map (C columns), the operand therefore needs the moved channels alone,
4C/3 columns. With a last column of ones, which carries the bias, token t's row is

    [x | right: channels 1 mod 3 | left: 2 mod 3 | below: 1 mod 3 | above: 2 mod 3 | 1]

where ``right`` is the value one column further on, and so forth; zero outside the map.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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


def operand_shifts(channels: int) -> tuple[Shift, Shift, Shift, Shift]:
    """The four groups, in the order of their columns; see :func:`cycle_offsets` for the signs.

    Args:
        channels (int): Channels of the map, C.
    """
    start, shifts = channels, []
    for residue, dy, dx in ((1, 0, 1), (2, 0, -1), (1, 1, 0), (2, -1, 0)):
        width = len(range(residue, channels, 3))
        shifts.append(Shift(slice(start, start + width), slice(residue, None, 3), dy, dx))
        start = start + width  # traced, a size is a tensor: += would change the slices
    return tuple(shifts)


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


def add_operand_grad(grad_x: Tensor, grad_out: Tensor, first: int, last: int) -> None:
    """Add the gradient of :func:`fill_operand`'s output to that of its map.

    Args:
        grad_x (Tensor): (B, H, W, C); added to.
        grad_out (Tensor): (B, last - first, W, operand_width(C) or without the last column).
        first, last (int): The rows.
    """
    height, width, channels = grad_x.shape[1:]
    grad_x[:, first:last] += grad_out[..., :channels]
    for columns, moved, dy, dx in operand_shifts(channels):
        top, bottom = _overlap(dy, first, last, height)
        left, right = _overlap(dx, 0, width, width)
        grad_x[:, top + dy : bottom + dy, left + dx : right + dx, moved] += grad_out[
            :, top - first : bottom - first, left:right, columns
        ]
