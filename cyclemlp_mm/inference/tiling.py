"""Large images by tiles that overlap, so that memory does not grow with the image.

Objects on a border are seen by two tiles or more, whole or in part. What they say is joined by
where they must agree: in the strip that both see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from pycocotools import mask as coco_mask

from cyclemlp_mm.errors import UserError

from .predictions import Instances, Prediction, Segments
from .predictor import Predictor, encode_mask

#: Two boxes can be of one object if their parts in the shared strip have at least this IoU.
SAME_IOU = 0.5
#: A cut box is a piece of another tile's box if that box covers at least this part of it.
PIECE_COVERED = 0.5
#: A box is cut if it comes this near to an inner border of its tile, as a fraction of the tile.
CUT_MARGIN = 0.02


@dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Args:
        size (int): Side of the square tiles, in pixels.
        overlap (float): Part of a tile that its neighbour covers too, at least; objects should not
            be larger than this strip. Defaults to 0.2.

    Raises:
        UserError: Size under 64, or an overlap outside 0..0.9.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.size < 64:
            raise UserError(f'tiles need a side of at least 64 px, but got {self.size}')
        if not 0 <= self.overlap <= 0.9:
            raise UserError(f'the overlap of tiles must be 0 to 0.9, but got {self.overlap:g}')

    def starts(self, length: int) -> list[int]:
        """Where the tiles of one axis begin; the last one ends where the image does."""
        if length <= self.size:
            return [0]
        step = max(1, int(self.size * (1 - self.overlap)))
        number = ceil((length - self.size) / step) + 1
        return [round(s) for s in np.linspace(0, length - self.size, number)]

    def tiles(self, height: int, width: int) -> np.ndarray:
        """Tiles of an image, row by row: int, (T, 4), x1, y1, x2, y2."""
        return np.array(
            [
                (x, y, min(x + self.size, width), min(y + self.size, height))
                for y in self.starts(height)
                for x in self.starts(width)
            ]
        )


def predict_tiled(
    predictor: Predictor, image: np.ndarray, tiling: Tiling, batch_size: int = 1
) -> Prediction:
    """Predict an image tile by tile.

    Args:
        predictor (Predictor): The model.
        image (np.ndarray): BGR uint8, (H, W, 3).
        tiling (Tiling): Size and overlap.
        batch_size (int): Tiles at once. Defaults to 1.

    Returns:
        Prediction: Of the whole image: instances of all tiles, each object once; or a label map in
        which every pixel is from the tile that sees most around it.
    """
    height, width = image.shape[:2]
    tiles = tiling.tiles(height, width)
    found = []
    segments = None
    for first in range(0, len(tiles), batch_size):
        chunk = tiles[first : first + batch_size]
        crops = [np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in chunk]
        for tile, prediction in zip(chunk, predictor.predict(crops, batch_size), strict=True):
            if isinstance(prediction, Segments):
                if segments is None:
                    segments = np.zeros((height, width), prediction.label_map.dtype)
                _paste(segments, prediction.label_map, tile, tiling)
            else:
                found.append(_moved(prediction, tile, (height, width)))
    return Segments(segments) if segments is not None else join_tiles(found, tiles, (height, width))


def _paste(whole: np.ndarray, part: np.ndarray, tile: np.ndarray, tiling: Tiling) -> None:
    """Write the part of a tile that is its own: up to the middle of each strip it shares."""
    x1, y1, _, _ = tile
    spans = []
    for length, begin, side in zip(whole.shape, (y1, x1), part.shape, strict=True):
        starts = tiling.starts(length)
        i = starts.index(begin)
        low = 0 if i == 0 else (starts[i - 1] + side + begin) // 2
        high = length if i == len(starts) - 1 else (starts[i + 1] + begin + side) // 2
        spans.append((low, high))
    (top, bottom), (left, right) = spans
    whole[top:bottom, left:right] = part[top - y1 : bottom - y1, left - x1 : right - x1]


def _moved(found: Instances, tile: np.ndarray, size: tuple[int, int]) -> Instances:
    """A tile's instances in pixels of the whole image."""
    x1, y1 = tile[:2]
    masks = found.masks
    if masks is not None:
        masks = [_moved_mask(mask, tile, size) for mask in masks]
    boxes = found.boxes + np.array([x1, y1, x1, y1], np.float32)
    return Instances(boxes, found.scores, found.labels, masks)


def _moved_mask(mask: dict, tile: np.ndarray, size: tuple[int, int]) -> dict:
    x1, y1, x2, y2 = tile
    whole = np.zeros(size, np.uint8, order='F')
    whole[y1:y2, x1:x2] = coco_mask.decode(mask)
    return encode_mask(whole)


def join_tiles(found: Sequence[Instances], tiles: np.ndarray, size: tuple[int, int]) -> Instances:
    """Instances of all tiles, those of one object joined.

    Boxes of two tiles are of one object if they have the same class and their parts in the strip
    that both tiles see overlap by an IoU of at least ``SAME_IOU``; the surest pairs come first, by
    IoU and, far less, by their scores. Boxes of one tile are never of one object, also not through
    a third box: the model's own NMS has judged them, and one may be in front of the other.

    The box with the most room to the inner borders of its tile stands for the object, with the mean
    score of the boxes that no border cuts; where all are cut, their union does, with the highest
    score. A cut box without a partner is dropped where another tile sees its place whole and has a
    larger box there that covers it (``PIECE_COVERED``).

    Args:
        found (Sequence[Instances]): Per tile, in pixels of the whole image.
        tiles (np.ndarray): int, (T, 4), x1, y1, x2, y2.
        size (tuple[int, int]): Height and width of the image.

    Returns:
        Instances: Best score first.
    """
    everything = _concatenated(found)
    boxes, scores, labels = everything.boxes, everything.scores, everything.labels
    first = np.concatenate([[0], np.cumsum([len(part) for part in found])])
    tile_of = np.repeat(np.arange(len(tiles)), np.diff(first))
    room = _room(boxes, tiles[tile_of], size)
    margin = CUT_MARGIN * (tiles[:, 2:] - tiles[:, :2]).max()
    cut = room < margin
    areas = _area(boxes)
    piece = np.zeros(len(boxes), bool)
    pairs = [np.empty((0, 3))]  # how sure, box, box
    for a in range(len(tiles) - 1):
        strips = _intersection(tiles[a : a + 1], tiles[a + 1 :])[0]
        for b in np.flatnonzero(_area(strips)) + a + 1:
            in_a, in_b = (np.arange(first[t], first[t + 1]) for t in (a, b))
            same_class = labels[in_a][:, None] == labels[in_b]
            strip = strips[b - a - 1]
            iou = same_class * _iou(_clipped(boxes[in_a], strip), _clipped(boxes[in_b], strip))
            i, j = np.nonzero(iou >= SAME_IOU)
            i, j, iou = in_a[i], in_b[j], iou[i, j]
            pairs.append(np.stack([iou**4 * scores[i] * scores[j], i, j], axis=1))
            shared = _area(_intersection(boxes[in_a], boxes[in_b])) * same_class
            for here, there, common, tile in ((in_a, in_b, shared, b), (in_b, in_a, shared.T, a)):
                covered = common >= PIECE_COVERED * areas[here][:, None]
                covered &= (common > 0) & (areas[here][:, None] < areas[there])
                seen_whole = _room(boxes[here], tiles[tile], size) >= margin
                piece[here] |= cut[here] & seen_whole & covered.any(axis=1)
    pairs = np.concatenate(pairs)
    groups = _groups(pairs[np.argsort(-pairs[:, 0], kind='stable'), 1:].astype(int), tile_of)
    groups = [group for group in groups if len(group) > 1 or not piece[group[0]]]
    return _joined(everything, groups, room, cut)


def _groups(pairs: np.ndarray, tile_of: np.ndarray) -> list[list[int]]:
    """Boxes by object: pairs (P, 2) in order, unless a tile would have two boxes of the object."""
    leader = list(range(len(tile_of)))  # of a union-find
    seen_in = [{tile} for tile in tile_of.tolist()]  # tiles of each leader's boxes

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i, j in pairs.tolist():
        a, b = find(i), find(j)
        if seen_in[a].isdisjoint(seen_in[b]):
            leader[b] = a
            seen_in[a] |= seen_in[b]
    groups = {}
    for i in range(len(leader)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def _joined(
    everything: Instances, groups: list[list[int]], room: np.ndarray, cut: np.ndarray
) -> Instances:
    """One instance per group."""
    keep, boxes, scores = [], everything.boxes.copy(), everything.scores.copy()
    masks = None if everything.masks is None else list(everything.masks)
    for group in groups:
        best = max(group, key=room.__getitem__)
        if cut[best]:
            best = max(group, key=scores.__getitem__)
            members = everything.boxes[group]
            boxes[best] = [*members[:, :2].min(axis=0), *members[:, 2:].max(axis=0)]
            if masks is not None and len(group) > 1:
                code = coco_mask.merge([everything.masks[i] for i in group])
                masks[best] = dict(size=list(code['size']), counts=code['counts'].decode())
        else:  # the maximum would favour whatever several tiles see
            whole = [i for i in group if not cut[i]]
            scores[best] = everything.scores[whole].mean(dtype=np.float64)
        keep.append(best)
    keep = np.array(keep, dtype=int)
    joined = Instances(boxes, scores, everything.labels, masks)
    return joined.pick(keep[np.argsort(-scores[keep], kind='stable')])


def _concatenated(found: Sequence[Instances]) -> Instances:
    with_masks = [part.masks for part in found if part.masks is not None]
    return Instances(
        np.concatenate([part.boxes for part in found]),
        np.concatenate([part.scores for part in found]),
        np.concatenate([part.labels for part in found]),
        [mask for masks in with_masks for mask in masks] if with_masks else None,
    )


def _room(boxes: np.ndarray, tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,): pixels between each box and the nearest border of its tile, (N, 4) or (4,), that is
    none of the image; infinite if there is none, negative if the box reaches beyond."""
    height, width = size
    low = np.where(tiles[..., :2] > 0, boxes[:, :2] - tiles[..., :2], np.inf)
    high = np.where(tiles[..., 2:] < (width, height), tiles[..., 2:] - boxes[:, 2:], np.inf)
    return np.minimum(low, high).min(axis=1)


def _clipped(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    return _intersection(boxes, region[None])[:, 0]


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 4) and (M, 4) to (N, M, 4); no area where they do not meet."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    return np.concatenate([low, np.minimum(a[:, None, 2:], b[None, :, 2:])], axis=2)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 4) and (M, 4) to (N, M); 0 where a box has no area."""
    shared = _area(_intersection(a, b))
    union = _area(a)[:, None] + _area(b) - shared
    return shared / np.where(union > 0, union, 1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1, dtype=np.float64)
