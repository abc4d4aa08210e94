"""Predictions drawn into an image: boxes, masks, segments, and what their colours mean."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from cyclemlp_mm.inference.predictions import Categories, Instances, Prediction, Segments

Palette = Sequence[tuple[int, int, int]]

#: Share of a mask's or segment's own colour in its pixels.
OPACITY = 0.55
#: Largest area of an object that no label may cover, in pixels of the image: COCO's "small".
SMALL = 32**2


@dataclass
class Style:
    """How predictions are drawn.

    Attributes:
        score_thr (float): Instances with a lower score are left out. Defaults to 0.3.
        line_width (int, optional): Of boxes, in pixels. Defaults to None: by the size.
        hide_labels (bool): Write no labels. Defaults to False.
        hide_scores (bool): Write names without scores. Defaults to False.
        longer_side (int): Smaller images are enlarged to it. Defaults to 640.
    """

    score_thr: float = 0.3
    line_width: int | None = None
    hide_labels: bool = False
    hide_scores: bool = False
    longer_side: int = 640


def draw_prediction(
    image: np.ndarray,
    prediction: Prediction,
    classes: Sequence[str],
    palette: Palette,
    style: Style = Style(),  # noqa: B008 (is not changed)
) -> np.ndarray:
    """Draw segments, or masks, boxes and labels, the best score on top, into a copy.

    Args:
        image (np.ndarray): RGB uint8, (H, W, 3), as is the result, which may be larger.
        prediction (Prediction): Labels beyond the palette are not drawn; of categories, nothing.
        classes (Sequence[str]): Names.
        palette (Palette): RGB in 0..255 of each class.
        style (Style): Defaults to Style().
    """
    factor = max(1.0, style.longer_side / max(image.shape[:2]))
    picture = image.copy()
    if factor > 1:
        picture, prediction = fit(image, prediction, style.longer_side)
    if isinstance(prediction, Categories):
        return picture
    if isinstance(prediction, Segments):
        colours = np.array(palette, np.uint8)
        for top in range(0, len(picture), 256):  # in chunks: a large image is not held as floats
            part, labels = picture[top : top + 256], prediction.label_map[top : top + 256]
            known = labels < len(colours)
            part[known] = part[known] * (1 - OPACITY) + colours[labels[known]] * OPACITY
        return picture
    instances = prediction.above(style.score_thr)
    instances = instances.pick(np.argsort(-instances.scores, kind='stable'))
    colours = [tuple(palette[label]) for label in instances.labels]
    for mask, colour in reversed(list(zip(instances.masks or (), colours, strict=False))):
        inside = coco_mask.decode(mask).astype(bool)
        mixed = picture[inside] * (1 - OPACITY) + np.array(colour, np.float32) * OPACITY
        picture[inside] = mixed.astype(np.uint8)
    canvas = Image.fromarray(picture)
    draw, shorter = ImageDraw.Draw(canvas), min(canvas.size)
    line = style.line_width or max(2, round(shorter / 250))
    boxes = np.clip(instances.boxes, 0, np.tile(canvas.size, 2) - 1)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    for (x1, y1, x2, y2), colour in reversed(list(zip(boxes.tolist(), colours, strict=True))):
        draw.rectangle([x1, y1, x2, y2], outline='black', width=line + 2)  # on any background
        if min(x2 - x1, y2 - y1) >= 2:
            draw.rectangle([x1 + 1, y1 + 1, x2 - 1, y2 - 1], outline=colour, width=line)
    if style.hide_labels or not len(boxes):
        return np.asarray(canvas)
    size = int(np.clip(shorter / 40, 11, 28))
    names = [classes[label] for label in instances.labels]
    texts = [names, [f'{n} {s:.2f}' for n, s in zip(names, instances.scores, strict=True)]]
    texts = [[label_text(text, size) for text in some] for some in texts[: 2 - style.hide_scores]]
    sizes = [[(font.getlength(text) + 4, size + 4) for text, font in some] for some in texts]
    small = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) < SMALL * factor**2
    places = place_labels(boxes, small, np.array(sizes[::-1]), canvas.size)
    for box, colour, place, *lengths in zip(boxes, colours, places, *texts[::-1], strict=True):
        if place is None:
            continue
        which, x, y = place
        text, font = lengths[which]
        width, height = font.getlength(text) + 4, size + 4
        x1, y1, x2, y2 = box.tolist()
        nearest = [np.clip(x + width / 2, x1, x2), np.clip(y + height / 2, y1, y2)]
        end = [np.clip(nearest[0], x, x + width), np.clip(nearest[1], y, y + height)]
        draw.line([*nearest, *end], fill=colour, width=line)  # to a label that is farther away
        draw.rectangle([x, y, x + width, y + height], fill=colour)
        ink = 'black' if np.dot(colour, (0.299, 0.587, 0.114)) > 120 else 'white'
        draw.text((x + 2, y + height / 2), text, fill=ink, font=font, anchor='lm')
    return np.asarray(canvas)


def place_labels(
    boxes: np.ndarray, small: np.ndarray, sizes: np.ndarray, canvas: tuple[int, int]
) -> list[tuple[int, float, float] | None]:
    """Find a place for each label, the first one's first: on no other label or small object.

    Args:
        boxes (np.ndarray): float32, (N, 4), x1, y1, x2, y2 inside of the canvas.
        small (np.ndarray): bool, (N,), objects that must stay visible.
        sizes (np.ndarray): float, (K, N, 2), width and height of each label's texts, the preferred
            one first.
        canvas (tuple[int, int]): Width and height.

    Returns:
        list: For each box, which text, x and y; None where no place is free.
    """
    taken = boxes[small]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).clip(min=1)
    places = []
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        places.append(None)
        for which, (width, height) in enumerate(sizes[:, i]):
            # Around the box and in its corners, then ever farther away.
            spots = [(x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2)]
            spots += [(x1, y1), (x1, y2 - height), (x2 - width, y1), (x2 - width, y2 - height)]
            spots += [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)]
            for away in height * np.arange(0.5, 4, 0.5):
                for x in np.linspace(x1 - width - away, x2 + away, 9):
                    spots += [(x, y1 - height - away), (x, y2 + away)]
                for y in np.linspace(y1 - height - away, y2 + away, 7):
                    spots += [(x1 - width - away, y), (x2 + away, y)]
            last = np.maximum(0, np.array(canvas) - (width + 1, height + 1))
            corners = np.clip(spots, 0, last)
            rects = np.concatenate([corners, corners + (width, height)], axis=1)
            free = ~(_overlaps(rects, taken) > 0).any(axis=1)
            if not free.any():
                continue
            hidden = (_overlaps(rects, boxes) / areas).clip(max=1).sum(axis=1)  # shares of objects
            moved = np.abs(corners - spots).sum(axis=1) / height
            cost = hidden + 0.02 * np.arange(len(rects)) ** 0.7 + 0.1 * moved
            best = np.where(free, cost, np.inf).argmin()
            places[i] = which, *corners[best].tolist()
            taken = np.concatenate([taken, rects[best : best + 1]])
            break
    return places


def _overlaps(rects: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas that (M, 4) rectangles share with (N, 4) others."""
    start = np.maximum(rects[:, None, :2], others[None, :, :2])
    end = np.minimum(rects[:, None, 2:], others[None, :, 2:])
    return (end - start).clip(min=0).prod(axis=2)


def fit(
    image: np.ndarray, prediction: Prediction, longer_side: int
) -> tuple[np.ndarray, Prediction]:
    """Resize an image and its prediction, so that what is drawn on them then keeps its size."""
    factor = longer_side / max(image.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)

    def resized(labels: np.ndarray) -> np.ndarray:
        return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)

    if isinstance(prediction, Categories):
        return small, prediction
    if isinstance(prediction, Segments):
        return small, Segments(resized(prediction.label_map))
    masks = prediction.masks
    if masks is not None:
        masks = [resized(coco_mask.decode(mask)) for mask in masks]
        masks = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    boxes = prediction.boxes * np.float32(factor)
    return small, Instances(boxes, prediction.scores, prediction.labels, masks)


def with_legend(
    picture: np.ndarray, prediction: Prediction, classes: Sequence[str], palette: Palette
) -> np.ndarray:
    """Add below a picture the classes of its segments, or the best categories with their scores."""
    if isinstance(prediction, Instances):
        return picture
    if isinstance(prediction, Segments):
        labels = np.unique(prediction.label_map)
        names = {i: classes[i] for i in labels if i < len(classes)}
    else:
        shown = [i for i in prediction.best(3) if prediction.scores[i] > 0]
        names = {i: f'{classes[i]} {prediction.scores[i]:.2f}' for i in shown}
    width = picture.shape[1]
    size = int(np.clip(width / 45, 11, 26))
    gap, places, x, y = size // 2, [], size // 2, size // 2
    for label, name in names.items():
        text, font = label_text(name, size)
        length = 1.6 * size + font.getlength(text) + 2 * gap
        if x > gap and x + length > width:
            x, y = gap, y + int(1.5 * size)
        places.append((label, text, font, x, y))
        x += length
    strip = Image.new('RGB', (width, y + size + gap if places else 1), 'white')
    draw = ImageDraw.Draw(strip)
    for label, text, font, x, y in places:
        square = [x, y, x + size, y + size]
        draw.rectangle(square, fill=tuple(palette[label]), outline=(60, 60, 60))
        middle = (x + 1.4 * size, y + size / 2)
        draw.text(middle, text, fill='black', font=font, anchor='lm')
    return np.concatenate([picture, np.asarray(strip)])


def label_text(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and a font that has all its characters; without one, the text in escapes."""
    path = _font_of(frozenset(text))
    if path is None:
        text, path = text.encode('ascii', 'backslashreplace').decode(), _DEJAVU
    return text, ImageFont.truetype(path, size)


#: Comes with matplotlib, and has most alphabets.
_DEJAVU = str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))


@cache
def _font_of(characters: frozenset[str]) -> str | None:
    codes = set(map(ord, characters))
    for path in (_DEJAVU, *_system_fonts()) if max(codes, default=0) > 127 else (_DEJAVU,):
        if codes <= _codes(path):
            return path
    what = 'no font of this system has all characters of the class names, so they are escaped'
    warnings.warn(f'{what}: install one, e.g. apt install fonts-noto-cjk', stacklevel=2)
    return None


@cache
def _system_fonts() -> list[str]:
    return sorted(findSystemFonts())


@cache
def _codes(path: str) -> set[int]:
    try:
        return set(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # damaged, or of a kind that FreeType cannot read
        return set()
