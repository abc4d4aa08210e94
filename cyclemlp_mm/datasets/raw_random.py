"""Random integers that are the same on every machine and for every numpy."""

from collections.abc import Sequence

import numpy as np


class RawRandom:
    """Random integers made from the raw 64-bit stream of PCG64.

    numpy promises that the raw stream of a bit generator never changes, but makes no such promise
    for the methods of ``numpy.random.Generator``; hence the few draws needed here are made from
    the raw stream by integer arithmetic.

    Args:
        entropy (Sequence[int]): What the stream depends on, each in [0, 2**32).
    """

    def __init__(self, entropy: 'Sequence[int]') -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(list(entropy)))

    def integers(self, low: int, high: int, shape: 'tuple[int, ...]') -> np.ndarray:
        """Draw integers from [low, high).

        Args:
            low (int): Smallest value.
            high (int): One above the largest value; ``high - low`` in [1, 2**32].
            shape (tuple[int, ...]): Shape of the array.

        Returns:
            numpy.ndarray: int64, of shape ``shape``.
        """
        raw = self._bits.random_raw(int(np.prod(shape)))
        # The upper half of each word scaled to the range (Lemire). The bias is below
        # (high - low) / 2**32 and it needs no rejection, so a draw always takes one word.
        scaled = (raw >> np.uint64(32)) * np.uint64(high - low) >> np.uint64(32)
        return scaled.astype(np.int64).reshape(shape) + low

    def integer(self, low: int, high: int) -> int:
        """Draw one integer from [low, high).

        Returns:
            int: The integer.
        """
        return int(self.integers(low, high, (1,))[0])
