"""Tiles cover the image, and what several of them see is told once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.inference import Instances, Segments, Tiling, predict_tiled
from cyclemlp_mm.inference.predictor import encode_mask


class PerfectDetector:
    """Finds every object of a :func:`picture`, as far as it sees it; class: number modulo 3."""

    is_segmentor = False

    def __init__(self, masks=False):
        self.masks = masks
        self.largest = 0

    def predict(self, crops, batch_size=1):
        return [self._one(crop.astype(int) @ (1, 256, 0)) for crop in crops]

    def _one(self, numbers):
        self.largest = max(self.largest, numbers.size)
        boxes, labels, scores, masks = [], [], [], []
        for number in np.unique(numbers[numbers > 0]):
            inside = numbers == number
            ys, xs = np.where(inside)
            boxes.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
            labels.append(number % 3)
            scores.append(0.5 + number / 1000)
            masks.append(encode_mask(inside))
        return Instances(
            np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32),
            np.array(labels, np.int64), masks if self.masks else None,
        )  # fmt: skip


def picture(height, width, boxes):
    """An image whose pixels hold the number of their object, 1, 2, …"""
    numbers = np.zeros((height, width), int)
    for number, (x1, y1, x2, y2) in enumerate(boxes, 1):
        numbers[y1:y2, x1:x2] = number
    return np.stack([numbers % 256, numbers // 256, 0 * numbers], axis=2).astype(np.uint8)


@given(
    length=st.integers(1, 3000), size=st.integers(64, 700), overlap=st.floats(0, 0.9)
)
def test_tiles_cover_and_overlap(length, size, overlap):
    starts = Tiling(size, overlap).starts(length)
    side = min(size, length)
    assert starts[0] == 0 and starts[-1] + side == length
    shared = [a + side - b for a, b in pairwise(starts)]
    assert all(s >= int(size * overlap) for s in shared)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_object_is_found_once(data):
    """Objects apart from one another, up to the overlap in size: exactly what is there."""
    height, width = (data.draw(st.integers(100, 500)) for _ in range(2))
    tiling = Tiling(128, 0.25)
    boxes = []
    for y in range(0, height - 40, 40):  # at most one object per cell of a grid
        for x in range(0, width - 40, 40):
            if data.draw(st.booleans()):
                w, h = data.draw(st.integers(6, 32)), data.draw(st.integers(6, 32))
                boxes.append((x + 2, y + 2, x + 2 + w, y + 2 + h))
    found = predict_tiled(PerfectDetector(), picture(height, width, boxes), tiling)
    assert sorted(map(tuple, found.boxes.astype(int))) == sorted(boxes)
    assert (np.diff(found.scores) <= 0).all()


def test_an_object_larger_than_a_tile_is_one():
    boxes = [(20, 30, 470, 80), (100, 100, 130, 480)]
    found = predict_tiled(PerfectDetector(masks=True), picture(500, 500, boxes), Tiling(128, 0.25))
    assert sorted(map(tuple, found.boxes.astype(int))) == sorted(boxes)
    for box, mask in zip(found.boxes.astype(int), found.masks, strict=True):
        inside = coco_mask.decode(mask)
        assert inside.shape == (500, 500)
        assert inside.sum() == (box[2] - box[0]) * (box[3] - box[1])
        assert inside[box[1] : box[3], box[0] : box[2]].all()


def test_neighbours_of_one_class_stay_two():
    boxes = [(90, 40, 118, 70), (119, 40, 147, 70), (90, 71, 118, 100)]
    numbers = picture(200, 260, boxes)
    found = predict_tiled(PerfectDetector(), numbers, Tiling(128, 0.3))
    assert sorted(map(tuple, found.boxes.astype(int))) == sorted(boxes)


def test_segments_are_cut_in_the_middle_of_the_overlap():
    """A segmentor that is wrong on its outermost pixels: no such pixel comes through."""

    class WrongAtTheRim:
        def predict(self, crops, batch_size=1):
            maps = []
            for crop in crops:
                labels = crop[..., 0].copy()
                labels[:8], labels[-8:], labels[:, :8], labels[:, -8:] = 9, 9, 9, 9
                maps.append(Segments(labels))
            return maps

    rng = np.random.default_rng(0)
    image = rng.integers(0, 5, (300, 411, 3), np.uint8)
    found = predict_tiled(WrongAtTheRim(), image, Tiling(128, 0.25), batch_size=3).label_map
    assert (found[8:-8, 8:-8] == image[8:-8, 8:-8, 0]).all()
    assert (found[:8] == 9).all()


def test_an_image_smaller_than_a_tile_is_one_tile():
    detector = PerfectDetector()
    predict_tiled(detector, picture(50, 70, [(1, 1, 9, 9)]), Tiling(128))
    assert detector.largest == 50 * 70


def test_nothing_found_is_no_error():
    found = predict_tiled(PerfectDetector(), picture(300, 300, []), Tiling(128))
    assert len(found) == 0 and found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    'size, overlap, said',
    [(63, 0.2, 'at least 64 px'), (128, -0.1, 'overlap .*-0'), (128, 0.95, r'overlap .*0\.95')],
)
def test_bad_tilings_are_refused(size, overlap, said):
    with pytest.raises(UserError, match=said):
        Tiling(size, overlap)
