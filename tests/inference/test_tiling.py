"""Tiles cover the image, and what several of them see is told once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cyclemlp_mm.inference import Instances, Segments, Tiling, predict_tiled
from cyclemlp_mm.inference.predictions import encode_mask
from cyclemlp_mm.inference.tiling import join_tiles


class PerfectDetector:
    """Finds every object of a :func:`picture`, as far as it sees it; class: number modulo 3."""

    def __init__(self, masks=False):
        self.masks = masks

    def predict(self, crops, batch_size=1):
        return [self._one(crop.astype(int) @ (1, 256, 0)) for crop in crops]

    def _one(self, numbers):
        found = np.unique(numbers[numbers > 0])
        insides = [numbers == number for number in found]
        places = [np.where(inside) for inside in insides]
        boxes = [(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) for ys, xs in places]
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        masks = [encode_mask(inside) for inside in insides] if self.masks else None
        return Instances(boxes, np.float32(0.5 + found / 1000), found % 3, masks)


def picture(height, width, boxes):
    """An image whose pixels hold the number of their object, 1, 2, …"""
    numbers = np.zeros((height, width), int)
    for number, (x1, y1, x2, y2) in enumerate(boxes, 1):
        numbers[y1:y2, x1:x2] = number
    return np.stack([numbers % 256, numbers // 256, 0 * numbers], axis=2).astype(np.uint8)


@given(length=st.integers(1, 3000), size=st.integers(64, 700), overlap=st.floats(0, 0.9))
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


def instances(*rows):
    """Of one class, from (x1, y1, x2, y2, score)."""
    rows = np.array(rows, np.float32).reshape(-1, 5)
    return Instances(rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int64), None)


def seen_by_tiles(boxes, size, tiling, scores=None):
    """What a detector that sees behind things finds in each tile of an image of one class."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.5, len(boxes)) if scores is None else scores
    tiles = tiling.tiles(*size)
    found = []
    for x1, y1, x2, y2 in tiles:
        clipped = np.clip(boxes, (x1, y1, x1, y1), (x2, y2, x2, y2))
        here = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        labels = np.zeros(here.sum(), np.int64)
        found.append(Instances(clipped[here], np.float32(scores)[here], labels, None))
    return join_tiles(found, tiles, size)


@st.composite
def crowds(draw):
    """Boxes of one class: apart, in front of an earlier one, or beside one of the same size."""
    height, width = draw(st.integers(130, 500)), draw(st.integers(130, 500))
    boxes = []
    for _ in range(draw(st.integers(0, 8))):
        x, y = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
        w, h = draw(st.integers(6, 300)), draw(st.integers(6, 300))
        place = draw(st.sampled_from(['anywhere', 'inside', 'beside'])) if boxes else 'anywhere'
        if place != 'anywhere':
            x1, y1, x2, y2 = draw(st.sampled_from(boxes))
            if place == 'inside' and min(x2 - x1, y2 - y1) > 8:
                w, h = draw(st.integers(3, x2 - x1 - 4)), draw(st.integers(3, y2 - y1 - 4))
                x, y = draw(st.integers(x1 + 1, x2 - w - 1)), draw(st.integers(y1 + 1, y2 - h - 1))
            elif place == 'beside' and x2 < width - 8:
                x, y, w, h = x2, y1, x2 - x1, y2 - y1
        box = (x, y, min(x + w, width), min(y + h, height))
        if box not in boxes:
            boxes.append(box)
    return (height, width), boxes


@settings(max_examples=100, deadline=None)
@given(crowds(), st.sampled_from([96, 128, 200]), st.sampled_from([0.1, 0.25, 0.5]), st.booleans())
def test_objects_in_front_of_others_of_their_class_stay(crowd, side, overlap, alike):
    size, boxes = crowd
    scores = np.full(len(boxes), 0.7) if alike else None
    found = seen_by_tiles(boxes, size, Tiling(side, overlap), scores)
    assert sorted(map(tuple, found.boxes.astype(int))) == sorted(boxes)


def test_boxes_of_one_tile_are_never_united():
    """Also not by a box of another tile that is like both of them."""
    tiles = Tiling(128, 0.5).tiles(128, 192)
    twins = instances((20, 10, 126, 60, 0.9), (22, 12, 126, 62, 0.8))
    other = instances((64, 10, 130, 60, 0.7))
    assert len(join_tiles([twins, other], tiles, (128, 192))) == 2


def test_the_tile_that_sees_most_around_an_object_is_believed():
    """Its box; the score is the mean of the views that no border cuts, not the luckiest one."""
    tiles = Tiling(128, 0.5).tiles(128, 256)  # begin at 0, 64 and 128
    views = instances((100, 10, 124, 40, 0.9)), instances((101, 11, 125, 41, 0.5)), instances()
    found = join_tiles(views, tiles, (128, 256))
    assert found.boxes.tolist() == [[101, 11, 125, 41]]
    assert found.scores == pytest.approx([0.7])


def test_a_piece_goes_where_another_tile_sees_it_whole():
    """Too inexact to be matched, but covered by a larger box. Where none covers it, it stays."""
    tiles = Tiling(128, 0.5).tiles(128, 192)
    piece = instances((100, 30, 128, 45, 0.8))
    whole = instances((95, 10, 150, 60, 0.6))
    assert join_tiles([piece, whole], tiles, (128, 192)).boxes.tolist() == whole.boxes.tolist()
    elsewhere = instances((130, 70, 160, 90, 0.6))
    assert len(join_tiles([piece, elsewhere], tiles, (128, 192))) == 2


def test_an_object_larger_than_a_tile_is_one():
    boxes = [(20, 30, 470, 80), (100, 100, 130, 480)]
    found = predict_tiled(PerfectDetector(masks=True), picture(500, 500, boxes), Tiling(128, 0.25))
    assert sorted(map(tuple, found.boxes.astype(int))) == sorted(boxes)
    for box, mask in zip(found.boxes.astype(int), found.masks, strict=True):
        inside = coco_mask.decode(mask)
        assert inside.shape == (500, 500)
        assert inside.sum() == (box[2] - box[0]) * (box[3] - box[1])
        assert inside[box[1] : box[3], box[0] : box[2]].all()


def test_masks_of_objects_in_front_of_others_are_their_own():
    large, small = (40, 40, 200, 120), (90, 60, 110, 80)  # numbers 1 and 4: of one class
    numbers = picture(260, 260, [large, (210, 10, 230, 30), (210, 210, 230, 230), small])
    found = predict_tiled(PerfectDetector(masks=True), numbers, Tiling(128, 0.25))
    areas = {
        tuple(box): int(coco_mask.area(mask))
        for box, mask in zip(found.boxes.astype(int).tolist(), found.masks, strict=True)
    }
    assert len(areas) == 4
    assert areas[small] == 20 * 20 and areas[large] == 160 * 80 - 20 * 20


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
