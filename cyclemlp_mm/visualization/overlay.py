"""Predictions drawn into an image: boxes, masks, segments, and what their colours mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from cyclemlp_mm.inference.predictions import Instances, Prediction, Segments

Palette = Sequence[tuple[int, int, int]]

#: Share of a mask's or segment's own colour in its pixels.
OPACITY = 0.55


def draw_prediction(
    image: np.ndarray,
    prediction: Prediction,
    classes: Sequence[str],
    palette: Palette,
    score_thr: float = 0.3,
) -> np.ndarray:
    """Draw what was predicted.

    Args:
        image (np.ndarray): RGB uint8, (H, W, 3); it stays as it is.
        prediction (Prediction): Instances or segments.
        classes (Sequence[str]): Names.
        palette (Palette): RGB in 0..255 of each class.
        score_thr (float): Instances below are left out. Defaults to 0.3.

    Returns:
        np.ndarray: RGB uint8, (H, W, 3).
    """
    if isinstance(prediction, Segments):
        return draw_segments(image, prediction.label_map, palette)
    return draw_instances(image, prediction.above(score_thr), classes, palette)


def fit(
    image: np.ndarray, prediction: Prediction, longer_side: int
) -> tuple[np.ndarray, Prediction]:
    """Image and prediction resized together: what is drawn on them then keeps its size.

    Args:
        image (np.ndarray): uint8, (H, W, 3).
        prediction (Prediction): In its pixels.
        longer_side (int): Of the result, in pixels.

    Returns:
        tuple[np.ndarray, Prediction]: Both, in the new size.
    """
    factor = longer_side / max(image.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    if isinstance(prediction, Segments):
        labels = cv2.resize(prediction.label_map, size, interpolation=cv2.INTER_NEAREST)
        return small, Segments(labels)
    masks = prediction.masks
    if masks is not None:
        masks = [_resized(mask, size) for mask in masks]
    boxes = prediction.boxes * np.float32(factor)
    return small, Instances(boxes, prediction.scores, prediction.labels, masks)


def _resized(mask: dict, size: tuple[int, int]) -> dict:
    small = cv2.resize(coco_mask.decode(mask), size, interpolation=cv2.INTER_NEAREST)
    return coco_mask.encode(np.asfortranarray(small))


def draw_segments(image: np.ndarray, label_map: np.ndarray, palette: Palette) -> np.ndarray:
    """Tint every pixel in its class's colour.

    Args:
        image (np.ndarray): RGB uint8, (H, W, 3).
        label_map (np.ndarray): int, (H, W); labels beyond the palette are left as they are.
        palette (Palette): RGB of each class.

    Returns:
        np.ndarray: RGB uint8, (H, W, 3).
    """
    colours = np.asarray(palette, np.float32).reshape(-1, 3)
    picture = image.copy()
    for rows in _row_blocks(image):  # in parts: a large image is not held as floats
        labels = label_map[rows]
        known = labels < len(colours)
        tint = colours[np.where(known, labels, 0)]
        mixed = image[rows] * (1 - OPACITY) + tint * OPACITY
        picture[rows] = np.where(known[..., None], mixed, image[rows]).astype(np.uint8)
    return picture


def draw_instances(
    image: np.ndarray,
    instances: Instances,
    classes: Sequence[str],
    palette: Palette,
    with_scores: bool = True,
) -> np.ndarray:
    """Draw masks, boxes and labels, the best score on top.

    Args:
        image (np.ndarray): RGB uint8, (H, W, 3).
        instances (Instances): All of them are drawn.
        classes (Sequence[str]): Names.
        palette (Palette): RGB of each class.
        with_scores (bool): Write scores behind names. Defaults to True.

    Returns:
        np.ndarray: RGB uint8, (H, W, 3).
    """
    order = np.argsort(instances.scores, kind='stable')
    picture = image.copy()
    for i in order if instances.masks is not None else ():
        inside = coco_mask.decode(instances.masks[i]).astype(bool)
        colour = np.array(palette[instances.labels[i]], np.float32)
        picture[inside] = (picture[inside] * (1 - OPACITY) + colour * OPACITY).astype(np.uint8)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    shorter = min(canvas.size)
    width = max(2, round(shorter / 250))
    font = label_font(int(np.clip(shorter / 32, 10, 28)))
    for i in order:
        colour = tuple(palette[instances.labels[i]])
        box = _inside(instances.boxes[i], canvas.size)
        # A dark line around the coloured one: seen on any background.
        draw.rectangle(box, outline=(0, 0, 0), width=width + 2)
        inner = [box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1]
        if inner[0] <= inner[2] and inner[1] <= inner[3]:
            draw.rectangle(inner, outline=colour, width=width)
    for i in order:  # labels above all lines
        text = classes[instances.labels[i]]
        if with_scores:
            text += f' {instances.scores[i]:.2f}'
        box = _inside(instances.boxes[i], canvas.size)
        _draw_label(draw, text, box, tuple(palette[instances.labels[i]]), font, canvas.size)
    return np.asarray(canvas)


def draw_legend(
    classes: Sequence[str], palette: Palette, labels: Sequence[int], width: int
) -> np.ndarray:
    """A strip of colours and their names, in as many lines as it takes.

    Args:
        classes (Sequence[str]): Names.
        palette (Palette): RGB of each class.
        labels (Sequence[int]): The classes to name.
        width (int): Of the strip, in pixels.

    Returns:
        np.ndarray: RGB uint8, (strip's height, width, 3).
    """
    size = int(np.clip(width / 45, 10, 26))
    font, gap = label_font(size), size // 2
    places, x, y = [], gap, gap
    for label in labels:
        length = 1.6 * size + font.getlength(classes[label]) + 2 * gap
        if x > gap and x + length > width:
            x, y = gap, y + int(1.5 * size)
        places.append((label, x, y))
        x += length
    strip = Image.new('RGB', (width, y + size + gap if places else 1), 'white')
    draw = ImageDraw.Draw(strip)
    for label, x, y in places:
        square = [x, y, x + size, y + size]
        draw.rectangle(square, fill=tuple(palette[label]), outline=(60, 60, 60))
        middle = (x + 1.4 * size, y + size / 2)
        draw.text(middle, classes[label], fill='black', font=font, anchor='lm')
    return np.asarray(strip)


def with_legend(
    picture: np.ndarray, prediction: Prediction, classes: Sequence[str], palette: Palette
) -> np.ndarray:
    """A picture of segments with the names of those that are in it below; others as they are."""
    if not isinstance(prediction, Segments):
        return picture
    present = [int(label) for label in np.unique(prediction.label_map) if label < len(classes)]
    return np.concatenate([picture, draw_legend(classes, palette, present, picture.shape[1])])


@cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    path = Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    return ImageFont.truetype(str(path), size)


def _row_blocks(image: np.ndarray, num_rows: int = 256) -> list[slice]:
    return [slice(y, y + num_rows) for y in range(0, image.shape[0], num_rows)]


def _inside(box: np.ndarray, size: tuple[int, int]) -> list[float]:
    """x1, y1, x2, y2 within an image of (width, height)."""
    x1, y1, x2, y2 = (float(v) for v in box)
    right, bottom = size[0] - 1, size[1] - 1
    x1, y1 = min(max(x1, 0), right), min(max(y1, 0), bottom)
    return [x1, y1, min(max(x2, x1), right), min(max(y2, y1), bottom)]


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: list[float],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """On top of the box; inside it where the image ends, and never out of the image."""
    width, height = font.getlength(text) + 4, font.size + 4
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    y = max(0, min(y, size[1] - height))
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    ink = 'black' if np.dot(colour, (0.299, 0.587, 0.114)) > 120 else 'white'
    draw.text((x + 2, y + height / 2), text, fill=ink, font=font, anchor='lm')
