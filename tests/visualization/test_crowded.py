"""How much labels cover, computed from where they are drawn."""

import cv2
import numpy as np
import pytest
from PIL import ImageDraw

from cyclemlp_mm.engine import class_palette
from cyclemlp_mm.inference import Instances
from cyclemlp_mm.visualization.overlay import SMALL, Style, draw_prediction

NAMES = [f'{name} of some material' for name in ('circle', 'ellipse', 'oval', 'disc')]


def crowded(number, size):
    """Images with 20 to 40 shapes, a quarter of them small, as (RGB, instances)."""
    for seed in range(number):
        random = np.random.default_rng(seed)
        image = np.full((size[1], size[0], 3), random.integers(50, 200, 3), np.uint8)
        boxes = []
        for _ in range(random.integers(20, 41)):
            longest = 30 if random.random() < 0.25 else min(size) // 4
            width, height = random.integers(10, longest, 2)
            x, y = random.integers(0, np.array(size) - (width, height))
            boxes.append((x, y, x + width, y + height))
            axes = int(width // 2), int(height // 2)
            colour = random.integers(0, 255, 3).tolist()
            cv2.ellipse(image, (int(x) + axes[0], int(y) + axes[1]), axes, 0, 0, 360, colour, -1)
        labels, scores = random.integers(0, 4, len(boxes)), random.uniform(0.4, 1, len(boxes))
        yield image, Instances(np.float32(boxes), np.float32(scores), labels)


def drawn_labels(monkeypatch, image, instances, style):
    """Rectangles of all texts that are drawn, float (N, 4)."""
    rects = []

    def text(draw, xy, text, fill, font, anchor):
        x1, _, x2, _ = font.getbbox(text, anchor=anchor)
        rects.append([xy[0] + x1 - 2, xy[1] - font.size / 2 - 2, xy[0] + x2 + 2])
        rects[-1].append(xy[1] + font.size / 2 + 2)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', text)
    picture = draw_prediction(image, instances, NAMES, class_palette(4), style)
    return np.array(rects).reshape(-1, 4), picture.shape[1] / image.shape[1]


def covered_area(rects, small):
    """Pixels of labels, and those of them that cover another label or a small object."""
    pixels = np.zeros(np.ceil(rects.max(axis=0)[:1:-1]).astype(int) + 1, int)
    for x1, y1, x2, y2 in np.rint(rects).astype(int):
        pixels[y1:y2, x1:x2] += 1
    hidden = pixels > 1
    for x1, y1, x2, y2 in np.rint(small).astype(int):
        hidden[y1:y2, x1:x2] |= pixels[y1:y2, x1:x2] > 0
    return (pixels > 0).sum(), hidden.sum()


@pytest.mark.parametrize(
    'number, size',
    [
        (5, (640, 480)),
        *(pytest.param(50, s, marks=pytest.mark.slow) for s in [(640, 480), (320, 240)]),
    ],
)
def test_labels_cover_neither_each_other_nor_small_objects(number, size, monkeypatch):
    area = covered = drawn = objects = num_small = 0
    for image, instances in crowded(number, size):
        rects, scale = drawn_labels(monkeypatch, image, instances, Style())
        sizes = np.prod(instances.boxes[:, 2:] - instances.boxes[:, :2], axis=1)
        small = instances.boxes[sizes < SMALL] * scale
        of_labels, hidden = covered_area(rects, small)
        area, covered = area + of_labels, covered + hidden
        drawn, objects, num_small = drawn + len(rects), objects + len(sizes), num_small + len(small)
    print(f'{size}: {covered / area:.2%} of the labels covers something')
    print(f'{drawn} of {objects} objects have a label, {num_small} are small')
    assert covered < 0.05 * area
    assert drawn > 0.9 * objects  # leaving labels out would be too easy
