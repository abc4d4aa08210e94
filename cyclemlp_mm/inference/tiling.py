"""Large images by tiles that overlap, so that memory does not grow with the image.

Objects on a border are seen by two tiles or more, whole or in part. What they say is joined by
where they must agree: in the strip that both see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from pycocotools import mask as coco_mask

from cyclemlp_mm.errors import UserError

from .predictions import Instances, Prediction, Segments
from .predictor import Predictor, encode_mask

#: Two boxes are of one object if their parts in the shared strip have at least this IoU.
SAME_IOU = 0.5
#: A box cut by its tile's border is a piece of another tile's if that much of it lies inside.
PIECE_INSIDE = 0.7
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

    def starts(self, length: int) -> 'list[int]':
        """Where the tiles of one axis begin; the last one ends where the image does."""
        if length <= self.size:
            return [0]
        step = max(1, int(self.size * (1 - self.overlap)))
        number = ceil((length - self.size) / step) + 1
        return [round(s) for s in np.linspace(0, length - self.size, number)]

    def tiles(self, height: int, width: int) -> np.ndarray:
        """Tiles of an image, row by row: int, (T, 4), x1, y1, x2, y2."""
        return np.array([
            (x, y, min(x + self.size, width), min(y + self.size, height))
            for y in self.starts(height) for x in self.starts(width)
        ])  # fmt: skip


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


def _paste(
    whole: np.ndarray, part: np.ndarray, tile: np.ndarray, tiling: Tiling
) -> None:
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


def _moved(found: Instances, tile: np.ndarray, size: 'tuple[int, int]') -> Instances:
    """A tile's instances in pixels of the whole image."""
    x1, y1 = tile[:2]
    masks = found.masks
    if masks is not None:
        masks = [_moved_mask(mask, tile, size) for mask in masks]
    boxes = found.boxes + np.array([x1, y1, x1, y1], np.float32)
    return Instances(boxes, found.scores, found.labels, masks)


def _moved_mask(mask: dict, tile: np.ndarray, size: 'tuple[int, int]') -> dict:
    x1, y1, x2, y2 = tile
    whole = np.zeros(size, np.uint8, order='F')
    whole[y1:y2, x1:x2] = coco_mask.decode(mask)
    return encode_mask(whole)


def join_tiles(
    found: 'Sequence[Instances]', tiles: np.ndarray, size: 'tuple[int, int]'
) -> Instances:
    """Instances of all tiles, those of one object joined.

    Boxes of two tiles are of one object if they have the same class and (a) their parts in the
    strip that both tiles see overlap by an IoU of ``SAME_IOU``, each box with one other at most; or
    (b) one of them is cut by its tile's border and lies mostly (``PIECE_INSIDE``) in the other. The
    best box that no border cuts stands for the object; where all are cut, their union does, with
    the highest score. Boxes of one tile are never joined: the model's own NMS has judged them.

    Args:
        found (Sequence[Instances]): Per tile, in pixels of the whole image.
        tiles (np.ndarray): int, (T, 4), x1, y1, x2, y2.
        size (tuple[int, int]): Height and width of the image.

    Returns:
        Instances: Best score first.
    """
    everything = _concatenated(found)
    tile_of = np.repeat(np.arange(len(tiles)), [len(part) for part in found])
    first = np.concatenate([[0], np.cumsum([len(part) for part in found])])
    cut = _is_cut(everything.boxes, tiles[tile_of], size)
    leader = list(range(len(everything)))  # of a union-find

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for a in range(len(tiles) - 1):
        strips = _intersection(tiles[a : a + 1], tiles[a + 1 :])[0]
        for b in np.flatnonzero(_area(strips)) + a + 1:
            if not len(found[a]) or not len(found[b]):
                continue
            for i, j in _same_objects(
                found[a], found[b], cut[first[a] : first[a + 1]], cut[first[b] : first[b + 1]],
                strips[b - a - 1],
            ):  # fmt: skip
                leader[find(first[b] + j)] = find(first[a] + i)
    groups = {}
    for i in range(len(everything)):
        groups.setdefault(find(i), []).append(i)
    return _joined(everything, list(groups.values()), cut)


def _same_objects(
    a: Instances, b: Instances, cut_a: np.ndarray, cut_b: np.ndarray, strip: np.ndarray
) -> 'list[tuple[int, int]]':
    """Pairs of indices, of one object each."""
    same_class = a.labels[:, None] == b.labels[None]
    in_a, in_b = _clipped(a.boxes, strip), _clipped(b.boxes, strip)
    shared = _area(_intersection(in_a, in_b))
    union = _area(in_a)[:, None] + _area(in_b)[None] - shared
    iou = np.where(same_class & (union > 0), shared / np.maximum(union, 1e-9), 0)
    pairs = []
    rest = iou.copy()
    while rest.size and rest.max() >= SAME_IOU:  # the best pair first, each box once
        i, j = np.unravel_index(rest.argmax(), rest.shape)
        pairs.append((int(i), int(j)))
        rest[i], rest[:, j] = 0, 0
    common = _area(_intersection(a.boxes, b.boxes))
    area_a, area_b = _area(a.boxes)[:, None], _area(b.boxes)[None]
    piece_a = cut_a[:, None] & (area_a <= area_b) & (common >= PIECE_INSIDE * area_a)
    piece_b = cut_b[None] & (area_b <= area_a) & (common >= PIECE_INSIDE * area_b)
    pieces = np.argwhere(same_class & (piece_a | piece_b) & (common > 0))
    return pairs + [(int(i), int(j)) for i, j in pieces]


def _joined(everything: Instances, groups: 'list[list[int]]', cut: np.ndarray) -> Instances:
    keep, boxes, masks = [], everything.boxes.copy(), everything.masks
    masks = None if masks is None else list(masks)
    for group in groups:
        group = sorted(group, key=lambda i: -everything.scores[i])
        whole = [i for i in group if not cut[i]]
        best = whole[0] if whole else group[0]
        keep.append(best)
        if not whole and len(group) > 1:
            members = everything.boxes[group]
            boxes[best] = [*members[:, :2].min(axis=0), *members[:, 2:].max(axis=0)]
            if masks is not None:
                code = coco_mask.merge([everything.masks[i] for i in group])
                masks[best] = dict(size=list(code['size']), counts=code['counts'].decode())
    scores = everything.scores.copy()
    for best, group in zip(keep, groups, strict=True):
        scores[best] = everything.scores[group].max()
    joined = Instances(boxes, scores, everything.labels, masks)
    keep = np.array(keep, dtype=int)
    return joined.pick(keep[np.argsort(-scores[keep], kind='stable')])


def _concatenated(found: 'Sequence[Instances]') -> Instances:
    with_masks = [part.masks for part in found if part.masks is not None]
    return Instances(
        np.concatenate([part.boxes for part in found]),
        np.concatenate([part.scores for part in found]),
        np.concatenate([part.labels for part in found]),
        [mask for masks in with_masks for mask in masks] if with_masks else None,
    )


def _is_cut(boxes: np.ndarray, tiles: np.ndarray, size: 'tuple[int, int]') -> np.ndarray:
    """bool, (N,): whether a box touches a border of its tile that is none of the image."""
    height, width = size
    margin = CUT_MARGIN * (tiles[:, 2:] - tiles[:, :2])
    low = (tiles[:, :2] > 0) & (boxes[:, :2] < tiles[:, :2] + margin)
    high = (tiles[:, 2:] < (width, height)) & (boxes[:, 2:] > tiles[:, 2:] - margin)
    return (low | high).any(axis=1)


def _clipped(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    return _intersection(boxes, region[None])[:, 0]


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 4) and (M, 4) to (N, M, 4); no area where they do not meet."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    return np.concatenate([low, np.minimum(a[:, None, 2:], b[None, :, 2:])], axis=2)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1, dtype=np.float64)
