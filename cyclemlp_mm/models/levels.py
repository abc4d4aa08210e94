"""One rule for ``out_indices`` and one for ``frozen_stages``, shared by all backbones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def resolve_out_indices(out_indices: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Feature levels to return, as non-negative indices.

    Args:
        out_indices (int | Sequence[int]): Levels; negative ones count from the last.
        num_levels (int): How many levels the backbone has.

    Returns:
        tuple[int, ...]: Strictly ascending indices in [0, num_levels).

    Raises:
        TypeError: Not an int or a sequence of ints.
        ValueError: Empty, out of range, or not ascending (necks expect fine to coarse).
    """
    listed = (out_indices,) if type(out_indices) is int else out_indices
    if (
        isinstance(listed, str)
        or not isinstance(listed, Sequence)
        or any(type(i) is not int for i in listed)
    ):
        raise TypeError(
            f'out_indices must be an int or a sequence of ints, but got {out_indices!r}'
        )
    if not listed:
        raise ValueError('out_indices is empty: name at least one level to return')
    wrong = [i for i in listed if not -num_levels <= i < num_levels]
    if wrong:
        raise ValueError(
            f'out_indices {wrong} are out of range: the backbone has {num_levels} levels, '
            f'{-num_levels} to {num_levels - 1}'
        )
    resolved = tuple(i % num_levels for i in listed)
    if any(b <= a for a, b in itertools.pairwise(resolved)):
        raise ValueError(
            f'out_indices must name each level once, fine to coarse, but got {out_indices}'
        )
    return resolved


def check_frozen_stages(frozen_stages: int, num_levels: int) -> int:
    """Return ``frozen_stages`` if it is in [-1, num_levels].

    Raises:
        TypeError: Not an int.
        ValueError: Out of range.
    """
    if type(frozen_stages) is not int:
        raise TypeError(f'frozen_stages must be an int, but got {frozen_stages!r}')
    if not -1 <= frozen_stages <= num_levels:
        raise ValueError(
            f'frozen_stages must be -1 (none), 0 (the stem) or 1 to {num_levels} (the stem and '
            f'that many stages), but got {frozen_stages}'
        )
    return frozen_stages


def halved(height: int, width: int, levels: Sequence[int]) -> list[tuple[int, int]]:
    """The size of each of ``levels``, where a level is half the one before, rounded up.

    Args:
        height, width (int): Of level 0.
        levels (Sequence[int]): Their indices.
    """
    return [((height + 2**i - 1) // 2**i, (width + 2**i - 1) // 2**i) for i in levels]
