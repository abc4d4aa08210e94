"""Scenes of coloured shapes that occlude one another on a textured background.

Every pixel is decided by integer arithmetic on a raw random stream, so that a scene is the same,
bit for bit, on every machine.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyclemlp_mm.errors import UserError

from .backgrounds import textured_background
from .raw_random import RawRandom

CLASSES = ('circle', 'square', 'triangle', 'star')
# One colour per class to draw results with: blue, orange, green and purple of Okabe and Ito, told
# apart with every kind of colour blindness. The colours in the images are others: see HUES.
PALETTE = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)]

SPLITS = ('train', 'val')
MIN_SIDE = 32
MIN_VISIBLE_PIXELS = 16
# An instance shows at least half of its whole; what leaves the image counts as hidden.
MIN_VISIBLE_SHARE = (1, 2)

# Unit of length while drawing: an eighth of a pixel. A pixel is sampled at 4 x 4 points, all of
# them at odd eighths.
UNIT = 8
SAMPLES = 4
# Cosines of whole degrees in units of 2**-14. Rounded far above the last bit of math.cos, in which
# C libraries differ.
COS = [round(math.cos(math.radians(degree)) * 2**14) for degree in range(360)]


@dataclass(frozen=True)
class Outline:
    """A shape as the points on the inner side of at least ``needed`` of ``lines`` lines.

    The lines' normals are spread evenly over the full turn; ``lines`` is 0 for the circle.
    """

    lines: int
    needed: int
    inner: int  # distance of the lines from the centre in 1/1024 of the radius
    reach: int  # distance of the farthest point in 1/1024 of the radius, rounded up


# The regions are of about the same area (from 0.75 to 1 of the circle's), so that the size tells
# nothing about the class. Inside four of five lines lies a pentagram.
OUTLINES = {
    'circle': Outline(lines=0, needed=0, inner=1024, reach=1024),
    'square': Outline(lines=4, needed=4, inner=870, reach=1232),
    'triangle': Outline(lines=3, needed=3, inner=696, reach=1394),
    'star': Outline(lines=5, needed=4, inner=462, reach=1498),
}


@dataclass(frozen=True)
class Shape:
    """A shape and its place; lengths are in eighths of a pixel."""

    label: int  # index into CLASSES
    centre: 'tuple[int, int]'  # (x, y)
    radius: int
    turn: int  # degrees in [0, 360)


# Fills of a class are of one hue, (low, high) for red, green and blue: reds, greens, blues and
# yellows. Colour and shape both tell the class, so that minutes of training suffice for a demo.
HUES = {
    'circle': ((150, 255), (0, 110), (0, 110)),
    'square': ((0, 110), (130, 255), (0, 110)),
    'triangle': ((0, 110), (0, 110), (150, 255)),
    'star': ((170, 255), (150, 255), (0, 80)),
}
ANY_HUE = ((0, 255),) * 3

FILLS = ('plain', 'plain', 'plain', 'outlined', 'striped')
# Distances of colours: the sum over the channels of the absolute differences.
DISTANCE_FROM_BACKGROUND = 180
DISTANCE_FROM_SHAPES = 100


@dataclass(frozen=True)
class Scene:
    """An image with its instances.

    Attributes:
        image (numpy.ndarray): uint8 of shape (H, W, 3), RGB.
        masks (numpy.ndarray): bool of shape (N, H, W), the visible part of each instance, from
            the lowest to the topmost; no two overlap. N >= 1.
        labels (numpy.ndarray): int64 of shape (N,), indices into ``CLASSES``.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


def checked_size(size: 'Sequence[int]') -> 'tuple[int, int]':
    """Check the size of an image.

    Args:
        size (Sequence[int]): (width, height), each >= 32.

    Returns:
        tuple[int, int]: (width, height).

    Raises:
        UserError: A ValueError; if ``size`` is not two integers >= 32.
    """
    try:
        width, height = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise UserError(
            f'size must be two integers (width, height), got {size!r}; pass for example (128, 128)'
        ) from None
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f'size must be at least ({MIN_SIDE}, {MIN_SIDE}), got {(width, height)}; '
            'choose a larger size'
        )
    return width, height


def checked_integer(name: str, value: int, low: int, high: int) -> int:
    """Check that a value is an integer within limits.

    Args:
        name (str): What the value is called in the message.
        value (int): The value.
        low (int): Smallest value allowed.
        high (int): Largest value allowed.

    Returns:
        int: The value.

    Raises:
        UserError: A ValueError; if it is no integer or is outside the limits.
    """
    try:
        integer = operator.index(value)
    except TypeError:
        integer = None
    if integer is None or not low <= integer <= high:
        raise UserError(
            f'{name} must be an integer from {low} to {high}, got {value!r}; pass one in that range'
        )
    return integer


def checked_seed(seed: int) -> int:
    """Check a seed, an integer in [0, 2**32).

    Returns:
        int: The seed.

    Raises:
        UserError: A ValueError; if it is none.
    """
    return checked_integer('seed', seed, 0, 2**32 - 1)


def coverage(shape: Shape, inset: int = 0) -> 'tuple[np.ndarray, int, int]':
    """Count the sample points of each pixel that lie inside a shape.

    Args:
        shape (Shape): The shape.
        inset (int): By how much the edge is moved inwards, in eighths of a pixel. Default: 0.

    Returns:
        tuple[numpy.ndarray, int, int]: Counts, int64 of shape (h, w) in [0, 16], over a window
        that holds the whole shape, and the window's left column and top row, which may lie
        outside the image.
    """
    outline = OUTLINES[CLASSES[shape.label]]
    reach = shape.radius * outline.reach // 1024 + 1
    left, top = ((middle - reach) // UNIT for middle in shape.centre)
    right, bottom = ((middle + reach) // UNIT + 1 for middle in shape.centre)
    step = UNIT // SAMPLES
    x = np.arange(left * UNIT + step // 2, right * UNIT, step, dtype=np.int64) - shape.centre[0]
    y = np.arange(top * UNIT + step // 2, bottom * UNIT, step, dtype=np.int64) - shape.centre[1]
    y = y[:, None]
    inner = max(shape.radius * outline.inner // 1024 - inset, 0)
    if outline.lines == 0:
        inside = x * x + y * y <= inner * inner
    else:
        sides = np.zeros((y.size, x.size), dtype=np.int8)
        for line in range(outline.lines):
            degree = (shape.turn + 360 // outline.lines * line) % 360
            # The sine is the cosine of 90 degrees less.
            sides += x * COS[degree] + y * COS[degree - 90] <= inner * 2**14
        inside = sides >= outline.needed
    counts = inside.reshape(bottom - top, SAMPLES, right - left, SAMPLES).sum(axis=(1, 3))
    return counts, left, top


def contrasting_colour(
    random: RawRandom,
    background: np.ndarray,
    others: 'Sequence[np.ndarray]',
    hue: 'Sequence[tuple[int, int]]' = ANY_HUE,
) -> np.ndarray:
    """Draw a colour that stands out from the background and from other colours.

    Args:
        random (RawRandom): Where the candidates come from.
        background (numpy.ndarray): The background's base colour, int64 of shape (3,).
        others (Sequence[numpy.ndarray]): Further colours, each int64 of shape (3,).
        hue (Sequence[tuple[int, int]]): Lowest and highest value of red, green and blue.
            Default: any.

    Returns:
        numpy.ndarray: int64 of shape (3,), in [0, 255]: the first of 32 candidates that keeps the
        distances, or else the one that misses them by least.
    """
    low, high = np.array(hue, dtype=np.int64).T
    candidates = low + random.integers(0, 256, (32, 3)) * (high - low) // 255
    margin = np.abs(candidates - background).sum(axis=1) - DISTANCE_FROM_BACKGROUND
    for other in others:
        distance = np.abs(candidates - other).sum(axis=1)
        margin = np.minimum(margin, distance - DISTANCE_FROM_SHAPES)
    # argmax takes the first of equals, that is the first candidate with enough margin.
    return candidates[np.minimum(margin, 0).argmax()]


def within_image(
    counts: np.ndarray, left: int, top: int, width: int, height: int
) -> 'tuple[tuple[slice, slice], np.ndarray]':
    """Cut a window down to the image.

    Args:
        counts (numpy.ndarray): The window, of shape (h, w).
        left (int): The window's left column; may be negative.
        top (int): The window's top row; may be negative.
        width (int): The image's width.
        height (int): The image's height.

    Returns:
        tuple[tuple[slice, slice], numpy.ndarray]: Rows and columns of the image that the window
        covers, and the part of ``counts`` there.
    """
    bottom, right = min(top + counts.shape[0], height), min(left + counts.shape[1], width)
    rows, columns = slice(max(top, 0), bottom), slice(max(left, 0), right)
    return (rows, columns), counts[
        rows.start - top : bottom - top, columns.start - left : right - left
    ]


def visible_enough(visible: int, whole: int) -> bool:
    """Whether an instance with ``visible`` of its ``whole`` pixels is worth an annotation.

    Returns:
        bool: True if it shows at least 16 pixels and half of the whole.
    """
    shown, of = MIN_VISIBLE_SHARE
    return visible >= MIN_VISIBLE_PIXELS and visible * of >= whole * shown


def paint(
    image: np.ndarray, area: 'tuple[slice, slice]', counts: np.ndarray, colour: np.ndarray
) -> None:
    """Blend a colour into an image, in place, by the share of each pixel that it covers.

    Args:
        image (numpy.ndarray): int64 of shape (H, W, 3).
        area (tuple[slice, slice]): Rows and columns to paint.
        counts (numpy.ndarray): Sample points covered, of the shape of the area, in [0, 16].
        colour (numpy.ndarray): int64 of shape (3,) or of the area's shape + (3,).
    """
    full = SAMPLES * SAMPLES
    share = counts[..., None]
    image[area] = (image[area] * (full - share) + colour * share + full // 2) // full


def random_shape(random: RawRandom, width: int, height: int) -> Shape:
    """Draw class, size, rotation and place of a shape by lot.

    Args:
        random (RawRandom): Where they come from.
        width (int): The image's width in pixels.
        height (int): The image's height in pixels.

    Returns:
        Shape: At least three quarters of its radius lie within the image on every side.
    """
    short = min(width, height)
    # The circle's diameter: 2/11 to 2/5 of the short side, and 8 pixels at least.
    smallest = max(short * UNIT // 11, 4 * UNIT)
    largest = short * UNIT // 5
    label = random.integer(0, len(CLASSES))
    radius = random.integer(smallest, largest + 1)
    turn = random.integer(0, 360)
    border = radius * 3 // 4
    x = random.integer(border, width * UNIT - border + 1)
    y = random.integer(border, height * UNIT - border + 1)
    return Shape(label, (x, y), radius, turn)


def fill_shape(
    image: np.ndarray,
    shape: Shape,
    random: RawRandom,
    background: np.ndarray,
    others: 'Sequence[np.ndarray]',
) -> 'list[np.ndarray]':
    """Paint a shape into an image, in place, with one or two colours drawn by lot.

    Args:
        image (numpy.ndarray): int64 of shape (H, W, 3).
        shape (Shape): The shape.
        random (RawRandom): Where the kind of filling and the colours come from.
        background (numpy.ndarray): The background's base colour, int64 of shape (3,).
        others (Sequence[numpy.ndarray]): Colours of the other shapes, each int64 of shape (3,).

    Returns:
        list[numpy.ndarray]: The colours used, each int64 of shape (3,).
    """
    height, width = image.shape[:2]
    area, counts = within_image(*coverage(shape), width, height)
    fill = FILLS[random.integer(0, len(FILLS))]
    colour = contrasting_colour(random, background, others, HUES[CLASSES[shape.label]])
    if fill == 'plain':
        paint(image, area, counts, colour)
        return [colour]
    second = contrasting_colour(random, background, [*others, colour])
    # Both a stripe and an outline have to be a pixel wide to be seen.
    breadth = max(shape.radius // (6 * UNIT), 1)
    if fill == 'outlined':
        paint(image, area, counts, second)
        inner = coverage(shape, inset=breadth * UNIT)
        paint(image, *within_image(*inner, width, height), colour)
    else:
        rows, columns = area
        rising = 1 - 2 * random.integer(0, 2)
        x = np.arange(columns.start, columns.stop)
        y = np.arange(rows.start, rows.stop)[:, None]
        stripes = (x * rising + y) // (2 * breadth) % 2 == 0
        paint(image, area, counts, np.where(stripes[..., None], colour, second))
    return [colour, second]


def make_scene(
    index: int,
    size: 'Sequence[int]' = (128, 128),
    seed: int = 0,
    split: str = 'train',
    max_objects: int = 6,
) -> Scene:
    """Draw one scene; it depends on the arguments alone, not on other scenes.

    Shapes are placed one over another. A place where the new shape or one below it would show
    less than half, or fewer than 16 pixels, is not taken; hence a scene may hold fewer shapes
    than were drawn by lot.

    Args:
        index (int): Number of the scene in its split, in [0, 2**32).
        size (Sequence[int]): (width, height) of the image, each >= 32. Default: (128, 128).
        seed (int): Seed of the data set, in [0, 2**32). Default: 0.
        split (str): 'train' or 'val'; the splits share no scene. Default: 'train'.
        max_objects (int): Largest number of instances, in [1, 1000]. Default: 6.

    Returns:
        Scene: With 1 to ``max_objects`` instances.

    Raises:
        UserError: A ValueError; if an argument is outside its range.
    """
    width, height = checked_size(size)
    index = checked_integer('index', index, 0, 2**32 - 1)
    max_objects = checked_integer('max_objects', max_objects, 1, 1000)
    if split not in SPLITS:
        raise UserError(f'split must be one of {SPLITS}, got {split!r}; pass one of them')
    random = RawRandom((checked_seed(seed), SPLITS.index(split), index))

    image, background = textured_background(random, width, height)
    shapes, masks, wholes, colours = [], [], [], []
    number = random.integer(1, max_objects + 1)
    # The first shape meets no other and always shows enough: no scene is empty.
    for _ in range(8 * number):
        if len(shapes) == number:
            break
        shape = random_shape(random, width, height)
        window, left, top = coverage(shape)
        whole = np.count_nonzero(2 * window >= SAMPLES * SAMPLES)
        area, counts = within_image(window, left, top, width, height)
        mask = np.zeros((height, width), dtype=bool)
        mask[area] = 2 * counts >= SAMPLES * SAMPLES
        visible = [lower & ~mask for lower in masks] + [mask]
        parts = [np.count_nonzero(part) for part in visible]
        if all(map(visible_enough, parts, wholes + [whole])):
            shapes.append(shape)
            masks = visible
            wholes.append(whole)
            colours += fill_shape(image, shape, random, background, colours)
    labels = np.array([shape.label for shape in shapes], dtype=np.int64)
    return Scene(image.astype(np.uint8), np.stack(masks), labels)
