"""Predictions of a model for an image, as plain arrays: instances, a label map or scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask


@dataclass
class Instances:
    """Objects that a detector found in one image.

    Attributes:
        boxes (np.ndarray): float32, (N, 4), x1, y1, x2, y2 in pixels of the image.
        scores (np.ndarray): float32, (N,), in 0..1.
        labels (np.ndarray): int64, (N,), class indices.
        masks (list[dict], optional): COCO run-length codes of the whole image; None without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def pick(self, index: np.ndarray) -> Instances:
        """Some of them, in the order of ``index``, int (M,) or bool (N,)."""
        if index.dtype == bool:
            index = np.flatnonzero(index)
        masks = None if self.masks is None else [self.masks[i] for i in index]
        return Instances(self.boxes[index], self.scores[index], self.labels[index], masks)

    def above(self, score_thr: float) -> Instances:
        """Those with a score of at least ``score_thr``."""
        return self.pick(self.scores >= score_thr)


@dataclass
class Segments:
    """A class index for every pixel, (H, W), uint8 (int32 beyond 256 classes)."""

    label_map: np.ndarray


@dataclass
class Categories:
    """A score for each class, float32 (C,), in 0..1."""

    scores: np.ndarray

    def best(self, number: int) -> list[int]:
        """Class indices of the highest scores, the best one first."""
        return np.argsort(-self.scores, kind='stable')[:number].tolist()


Prediction = Instances | Segments | Categories


def from_sample(sample: object, num_classes: int, part: str = 'pred') -> Prediction | None:
    """What a toolbox's data sample holds: the prediction, or with ``part='gt'`` the ground truth.

    Scores of the ground truth are 1. Returns None where the sample has no such part.
    """
    if f'{part}_sem_seg' in sample:
        labels = getattr(sample, f'{part}_sem_seg').data[0].cpu().numpy()
        return Segments(labels.astype(np.uint8 if num_classes <= 256 else np.int32))
    if part == 'pred' and 'pred_score' in sample:
        return Categories(sample.pred_score.cpu().numpy().astype(np.float32))
    if part == 'gt' and 'gt_label' in sample:
        labels = sample.gt_label.cpu().numpy()
        return Categories(np.isin(np.arange(num_classes), labels).astype(np.float32))
    if f'{part}_instances' not in sample or 'bboxes' not in getattr(sample, f'{part}_instances'):
        return None
    found = getattr(sample, f'{part}_instances').cpu().numpy()
    boxes = getattr(found.bboxes, 'tensor', found.bboxes)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    scores = np.asarray(found.scores if 'scores' in found else np.ones(len(boxes)), np.float32)
    masks = found.masks if 'masks' in found else None
    if masks is not None:
        masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks
        masks = [encode_mask(mask) for mask in masks]
    return Instances(boxes, scores, found.labels.astype(np.int64), masks)


def encode_mask(mask: np.ndarray) -> dict:
    """A bool or 0/1 mask (H, W) as COCO's run-length code, its counts as text for json."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(size=[int(side) for side in code['size']], counts=code['counts'].decode())
