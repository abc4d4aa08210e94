"""Predictions drawn into an image: boxes, masks, segments, and what their colours mean."""

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
    with_scores: bool = True,
) -> np.ndarray:
    """Draw segments, or masks, boxes and labels, the best score on top, into a copy.

    Args:
        image (np.ndarray): RGB uint8, (H, W, 3), as is the result.
        prediction (Prediction): Labels beyond the palette are not drawn.
        classes (Sequence[str]): Names.
        palette (Palette): RGB in 0..255 of each class.
        score_thr (float): Instances below are left out. Defaults to 0.3.
        with_scores (bool): Write scores after names. Defaults to True.
    """
    picture = image.copy()
    if isinstance(prediction, Segments):
        colours = np.array(palette, np.uint8)
        for top in range(0, len(image), 256):  # in chunks: a large image is not held as floats
            part, labels = picture[top : top + 256], prediction.label_map[top : top + 256]
            known = labels < len(colours)
            part[known] = part[known] * (1 - OPACITY) + colours[labels[known]] * OPACITY
        return picture
    instances = prediction.above(score_thr)
    instances = instances.pick(np.argsort(instances.scores, kind='stable'))
    colours = [tuple(palette[label]) for label in instances.labels]
    for mask, colour in zip(instances.masks or (), colours, strict=False):
        inside = coco_mask.decode(mask).astype(bool)
        mixed = picture[inside] * (1 - OPACITY) + np.array(colour, np.float32) * OPACITY
        picture[inside] = mixed.astype(np.uint8)
    canvas = Image.fromarray(picture)
    draw, shorter = ImageDraw.Draw(canvas), min(canvas.size)
    line = max(2, round(shorter / 250))
    font = label_font(int(np.clip(shorter / 32, 10, 28)))
    boxes = np.clip(instances.boxes, 0, np.tile(canvas.size, 2) - 1)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    boxes = boxes.tolist()
    for (x1, y1, x2, y2), colour in zip(boxes, colours, strict=True):
        draw.rectangle([x1, y1, x2, y2], outline='black', width=line + 2)  # on any background
        if min(x2 - x1, y2 - y1) >= 2:
            draw.rectangle([x1 + 1, y1 + 1, x2 - 1, y2 - 1], outline=colour, width=line)
    placed = []
    for i in reversed(range(len(boxes))):  # above all lines, the best score's first
        text = classes[instances.labels[i]]
        text += f' {instances.scores[i]:.2f}' if with_scores else ''
        x1, y1, _, y2 = boxes[i]
        width, height = font.getlength(text) + 4, font.size + 4
        right, bottom = canvas.width - width, canvas.height - height
        # On the box, in it or below it: in the image, and where no other label is if possible.
        x = max(0, min(x1, right))
        places = [y for y in (y1 - height, y1, y2, y2 - height) if 0 <= y <= bottom]
        near = [v for u, v, w in placed if x < u + w and u < x + width]
        free = [y for y in places if all(abs(y - v) >= height for v in near)]
        y = (free or places or [max(0, bottom)])[0]
        placed.append((x, y, width))
        draw.rectangle([x, y, x + width, y + height], fill=colours[i])
        ink = 'black' if np.dot(colours[i], (0.299, 0.587, 0.114)) > 120 else 'white'
        draw.text((x + 2, y + height / 2), text, fill=ink, font=font, anchor='lm')
    return np.asarray(canvas)


def fit(
    image: np.ndarray, prediction: Prediction, longer_side: int
) -> tuple[np.ndarray, Prediction]:
    """Resize an image, uint8 (H, W, 3), and its prediction to ``longer_side`` px.

    What is drawn on them then keeps its size.
    """
    factor = longer_side / max(image.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)

    def nearest(labels: np.ndarray) -> np.ndarray:
        return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)

    if isinstance(prediction, Segments):
        return small, Segments(nearest(prediction.label_map))
    masks = prediction.masks
    if masks is not None:
        masks = [nearest(coco_mask.decode(mask)) for mask in masks]
        masks = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    boxes = prediction.boxes * np.float32(factor)
    return small, Instances(boxes, prediction.scores, prediction.labels, masks)


def with_legend(
    picture: np.ndarray, prediction: Prediction, classes: Sequence[str], palette: Palette
) -> np.ndarray:
    """Add the names of the classes below a picture of segments; other pictures are unchanged."""
    if not isinstance(prediction, Segments):
        return picture
    width = picture.shape[1]
    size = int(np.clip(width / 45, 10, 26))
    font, gap = label_font(size), size // 2
    places, x, y = [], gap, gap
    for label in np.unique(prediction.label_map):
        if label < len(classes):
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
    return np.concatenate([picture, np.asarray(strip)])


@cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most alphabets."""
    path = Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    return ImageFont.truetype(str(path), size)
