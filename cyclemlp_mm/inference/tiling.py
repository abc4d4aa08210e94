"""Large images by tiles that overlap, so that memory does not grow with the image.

Objects on a border are seen by two tiles or more, whole or in part. Their boxes are joined where
they must agree: in the strip that both tiles see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np
from pycocotools import mask as coco_mask

from .predictions import Instances, Prediction, Segments, encode_mask
from .predictor import Predictor

SAME_IOU = 0.5  # of two boxes' parts in the shared strip, if they may be of one object
PIECE_COVERED = 0.5  # part of a cut box that another tile's box covers, if it is a piece of that
CUT_MARGIN = 0.02  # a box is cut this near to an inner border of its tile, in parts of the tile


@dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Args:
        size (int): Side of the square tiles, in pixels, at least 64.
        overlap (float): Part of a tile that its neighbour covers too, at least, in 0..0.9; objects
            should not be larger than this strip. Defaults to 0.2.
    """

    size: int
    overlap: float = 0.2

    def starts(self, length: int) -> list[int]:
        """Where the tiles of one axis begin; the last one ends where the image does."""
        if length <= self.size:
            return [0]
        step = max(1, int(self.size * (1 - self.overlap)))
        number = ceil((length - self.size) / step) + 1
        return [round(s) for s in np.linspace(0, length - self.size, number)]

    def tiles(self, height: int, width: int) -> np.ndarray:
        """Tiles of an image, row by row: int, (T, 4), x1, y1, x2, y2."""
        places = product(self.starts(height), self.starts(width))
        side_y, side_x = min(self.size, height), min(self.size, width)
        return np.array([(x, y, x + side_x, y + side_y) for y, x in places])


def predict_tiled(
    predictor: Predictor, image: np.ndarray, tiling: Tiling, batch_size: int = 1
) -> Prediction:
    """Predict an image, BGR uint8 (H, W, 3), tile by tile, with ``batch_size`` tiles at once.

    Each object is found once; every pixel of a label map is from the tile that sees most around it.
    """
    size = image.shape[:2]
    tiles = tiling.tiles(*size)
    found, whole = [], None
    for first in range(0, len(tiles), batch_size):
        chunk = tiles[first : first + batch_size]
        crops = [np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in chunk]
        for tile, part in zip(chunk, predictor.predict(crops, batch_size), strict=True):
            if isinstance(part, Segments):
                if whole is None:
                    whole = np.zeros(size, part.label_map.dtype)
                _paste(whole, part.label_map, tile, tiling)
            else:
                found.append(_moved(part, tile, size))
    return join_tiles(found, tiles, size) if whole is None else Segments(whole)


def _paste(whole: np.ndarray, part: np.ndarray, tile: np.ndarray, tiling: Tiling) -> None:
    """Write the part of a tile that is its own: up to the middle of each strip it shares."""
    source, target = [], []
    for length, begin, side in zip(whole.shape, tile[1::-1], part.shape, strict=True):
        starts = tiling.starts(length)
        i = starts.index(begin)
        low = 0 if i == 0 else (starts[i - 1] + side + begin) // 2
        high = length if i == len(starts) - 1 else (starts[i + 1] + begin + side) // 2
        source.append(slice(low - begin, high - begin))
        target.append(slice(low, high))
    whole[tuple(target)] = part[tuple(source)]


def _moved(found: Instances, tile: np.ndarray, size: tuple[int, int]) -> Instances:
    """A tile's instances in pixels of the whole image."""
    x1, y1, x2, y2 = tile
    masks = None if found.masks is None else []
    for mask in found.masks or ():
        whole = np.zeros(size, np.uint8, order='F')
        whole[y1:y2, x1:x2] = coco_mask.decode(mask)
        masks.append(encode_mask(whole))
    boxes = found.boxes + np.array([x1, y1, x1, y1], np.float32)
    return Instances(boxes, found.scores, found.labels, masks)


def join_tiles(found: Sequence[Instances], tiles: np.ndarray, size: tuple[int, int]) -> Instances:
    """Instances of all tiles, best score first, those of one object joined.

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
    """
    boxes = np.concatenate([part.boxes for part in found])
    scores = np.concatenate([part.scores for part in found])
    labels = np.concatenate([part.labels for part in found])
    masks = None
    if any(part.masks is not None for part in found):
        masks = [mask for part in found for mask in part.masks or ()]
    first = np.concatenate([[0], np.cumsum([len(part) for part in found])])
    tile_of = np.repeat(np.arange(len(tiles)), np.diff(first))
    margin = CUT_MARGIN * (tiles[:, 2:] - tiles[:, :2]).max()
    room, areas = _room(boxes, tiles[tile_of], size), _area(boxes)
    cut, piece = room < margin, np.zeros(len(boxes), bool)
    pairs = []  # how sure, box, box
    for a in range(len(tiles) - 1):
        strips = _shared(tiles[a], tiles)
        for b in np.flatnonzero(_area(strips[a + 1 :])) + a + 1:
            in_a, in_b = (np.arange(first[t], first[t + 1]) for t in (a, b))
            same_class = labels[in_a][:, None] == labels[in_b]
            parts = (_shared(boxes[t], strips[b]) for t in (in_a, in_b))
            iou = same_class * _iou(*parts)
            i, j = np.nonzero(iou >= SAME_IOU)
            sure = iou[i, j] ** 4 * scores[in_a[i]] * scores[in_b[j]]
            pairs += zip(sure, in_a[i], in_b[j])
            shared = _area(_shared(boxes[in_a][:, None], boxes[in_b])) * same_class
            for here, there, common, tile in ((in_a, in_b, shared, b), (in_b, in_a, shared.T, a)):
                own = areas[here][:, None]
                covers = (common >= PIECE_COVERED * own) & (common > 0) & (own < areas[there])
                seen_whole = _room(boxes[here], tiles[tile], size) >= margin
                piece[here] |= cut[here] & seen_whole & covers.any(axis=1)
    pairs.sort(key=lambda pair: -pair[0])  # stable
    groups = _groups([pair[1:] for pair in pairs], tile_of.tolist())
    joined = Instances(boxes.copy(), scores.copy(), labels, masks and list(masks))
    keep = []
    for group in groups:
        if len(group) == 1 and piece[group[0]]:
            continue
        best = max(group, key=room.__getitem__)
        if cut[best]:
            best = max(group, key=scores.__getitem__)
            members = boxes[group]
            joined.boxes[best] = [*members[:, :2].min(axis=0), *members[:, 2:].max(axis=0)]
            if masks is not None and len(group) > 1:
                code = coco_mask.merge([masks[i] for i in group])
                joined.masks[best] = dict(size=list(code['size']), counts=code['counts'].decode())
        else:  # the maximum would favour whatever several tiles see
            whole = [i for i in group if not cut[i]]
            joined.scores[best] = scores[whole].mean(dtype=np.float64)
        keep.append(best)
    keep = np.array(keep, dtype=int)
    return joined.pick(keep[np.argsort(-joined.scores[keep], kind='stable')])


def _groups(pairs: list[tuple[int, int]], tile_of: list[int]) -> list[list[int]]:
    """Boxes by object: pairs in order, unless a tile would have two boxes of the object."""
    groups = [[i] for i in range(len(tile_of))]
    group_of = groups.copy()  # of each box
    for i, j in pairs:
        a, b = group_of[i], group_of[j]
        if {tile_of[m] for m in a}.isdisjoint(tile_of[m] for m in b):
            a += b
            for member in b:
                group_of[member] = a
    return [sorted(group_of[i]) for i in range(len(tile_of)) if min(group_of[i]) == i]


def _room(boxes: np.ndarray, tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,): pixels between each box and the nearest inner border of its tile, (N, 4) or (4,).

    Infinite if no border of the tile is inside the image, negative if the box reaches beyond it.
    """
    height, width = size
    low = np.where(tiles[..., :2] > 0, boxes[:, :2] - tiles[..., :2], np.inf)
    high = np.where(tiles[..., 2:] < (width, height), tiles[..., 2:] - boxes[:, 2:], np.inf)
    return np.minimum(low, high).min(axis=1)


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where boxes (…, 4) overlap; no area where they do not."""
    low = np.maximum(a[..., :2], b[..., :2])
    return np.concatenate([low, np.minimum(a[..., 2:], b[..., 2:])], axis=-1)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 4) and (M, 4) to (N, M); 0 where a box has no area."""
    shared = _area(_shared(a[:, None], b))
    union = _area(a)[:, None] + _area(b) - shared
    return shared / np.where(union > 0, union, 1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1, dtype=np.float64)
