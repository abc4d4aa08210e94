"""Textured backgrounds of low contrast, drawn in integer arithmetic."""

import numpy as np

from .raw_random import RawRandom

PATTERNS = ('plain', 'stripes', 'checks', 'gradient')
# Greatest departure of a texture from the base colour, in grey levels of each channel: far below
# the distance that a shape's colour keeps from the base colour.
PATTERN_CONTRAST = 22
NOISE_CONTRAST = 14


def value_noise(random: RawRandom, width: int, height: int, cell: int) -> np.ndarray:
    """Random values on a lattice, interpolated bilinearly between its points.

    Args:
        random (RawRandom): Where the values come from.
        width (int): Width in pixels.
        height (int): Height in pixels.
        cell (int): Distance of the lattice's points in pixels, >= 1.

    Returns:
        numpy.ndarray: int64 of shape (height, width), in [-256, 256].
    """
    lattice = random.integers(-256, 257, (height // cell + 2, width // cell + 2))
    row, row_part = np.divmod(np.arange(height), cell)
    column, column_part = np.divmod(np.arange(width), cell)
    row_part = row_part[:, None]
    lines = lattice[row] * (cell - row_part) + lattice[row + 1] * row_part
    blend = lines[:, column] * (cell - column_part) + lines[:, column + 1] * column_part
    return blend // (cell * cell)


def pattern(random: RawRandom, kind: str, width: int, height: int) -> np.ndarray:
    """A regular pattern in a random direction.

    Args:
        random (RawRandom): Where period, direction and phase come from.
        kind (str): One of ``PATTERNS``.
        width (int): Width in pixels.
        height (int): Height in pixels.

    Returns:
        numpy.ndarray: int64 of shape (height, width), in [-256, 256].
    """
    short = min(width, height)
    period = random.integer(short // 16 + 2, short // 6 + 3)
    phase = random.integer(0, 2 * period)
    across, down = (int(step) for step in random.integers(-3, 4, (2,)))
    if (across, down) == (0, 0):
        across = 1
    x = np.arange(width)[None, :]
    y = np.arange(height)[:, None]
    if kind == 'stripes':
        # Divided by the length of the step (rounded), for stripes as wide in every direction.
        length = int(np.sqrt(across * across + down * down) + 0.5)
        return ((across * x + down * y) // length + phase) // period % 2 * 512 - 256
    if kind == 'checks':
        return ((x + phase) // period + (y + phase) // period) % 2 * 512 - 256
    if kind == 'gradient':
        ramp = across * x + down * y
        low, high = int(ramp.min()), int(ramp.max())
        return (ramp - low) * 512 // (high - low) - 256
    return np.zeros((height, width), dtype=np.int64)


def textured_background(
    random: RawRandom, width: int, height: int
) -> 'tuple[np.ndarray, np.ndarray]':
    """A background: a base colour, a pattern, and value noise of three scales.

    Args:
        random (RawRandom): Where all choices come from.
        width (int): Width in pixels.
        height (int): Height in pixels.

    Returns:
        tuple[numpy.ndarray, numpy.ndarray]: The image, int64 of shape (height, width, 3) in
        [0, 255], and its base colour, int64 of shape (3,).
    """
    base = random.integers(50, 206, (3,))
    kind = PATTERNS[random.integer(0, len(PATTERNS))]
    tint = random.integers(-PATTERN_CONTRAST, PATTERN_CONTRAST + 1, (3,))
    image = base + pattern(random, kind, width, height)[..., None] * tint // 256
    short = min(width, height)
    for cell in (short // 3, short // 10, 2):
        tint = random.integers(-NOISE_CONTRAST, NOISE_CONTRAST + 1, (3,))
        image += value_noise(random, width, height, cell)[..., None] * tint // 256
    return np.clip(image, 0, 255), base
