"""Predictions of a model for an image, as plain arrays: instances or a label map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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


Prediction = Instances | Segments
