"""Predictions beside ground truth, the worst images first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cyclemlp_mm.inference.predictions import Instances, Prediction, Segments

from .overlay import draw_instances, draw_segments, fit
from .style import save, unit_colours

#: A box counts as found if a prediction of its class has at least this IoU with it.
FOUND_IOU = 0.5
#: Longer side of a picture in the gallery, in pixels.
THUMBNAIL = 320


@dataclass
class Judged:
    """A validation image, what is in it, what was predicted, and how good that is.

    Attributes:
        name (str): The file's.
        image (np.ndarray): RGB uint8, (H, W, 3).
        truth (Prediction): Ground truth; of instances, all scores are 1.
        prediction (Prediction): The model's.
        score (float): 0..1: F1 of the boxes, or mIoU over the classes that the truth has.
        said (str): The score in words.
    """

    name: str
    image: np.ndarray
    truth: Prediction
    prediction: Prediction
    score: float
    said: str


def judge_instances(
    truth: Instances, found: Instances, score_thr: float, ignored: np.ndarray | None = None
) -> tuple[float, str]:
    """F1 of one image's boxes at an IoU of 0.5, those with the best score matched first.

    Args:
        truth (Instances): Ground truth.
        found (Instances): Predictions.
        score_thr (float): Predictions below do not count.
        ignored (np.ndarray, optional): bool, (N,): boxes of the truth that need not be found; what
            lies on them does not count either. Defaults to None: none.

    Returns:
        tuple[float, str]: F1, 1 where nothing is to be found and nothing was, and it in words.
    """
    found = found.above(score_thr)
    if ignored is None:
        ignored = np.zeros(len(truth), bool)
    free = np.ones(len(truth), bool)
    hits = wrong = 0
    for i in np.argsort(-found.scores, kind='stable'):
        iou = _iou(found.boxes[i], truth.boxes) * (truth.labels == found.labels[i]) * free
        if len(iou) and iou.max() >= FOUND_IOU:
            best = iou.argmax()
            if not ignored[best]:
                free[best] = False
                hits += 1
        else:
            wrong += 1
    wanted = int((~ignored).sum())
    f1 = 2 * hits / (hits + wrong + wanted) if hits + wrong + wanted else 1.0
    return f1, f'F1 {f1:.2f}: {hits} of {wanted} found, {wrong} wrong'


def judge_segments(truth: Segments, found: Segments, num_classes: int) -> tuple[float, str]:
    """Mean IoU over the classes that one image's truth has.

    Args:
        truth (Segments): Ground truth; labels that are no class are ignored.
        found (Segments): Prediction, of the same size.
        num_classes (int): Number of classes.

    Returns:
        tuple[float, str]: mIoU, 1 where no pixel counts, and it in words.
    """
    counts = truth.label_map < num_classes
    labels, guesses = truth.label_map[counts], found.label_map[counts]
    present = np.unique(labels)
    if not len(present):
        return 1.0, 'nothing labelled'
    ious = {
        int(c): ((labels == c) & (guesses == c)).sum() / ((labels == c) | (guesses == c)).sum()
        for c in present
    }
    score = float(np.mean(list(ious.values())))
    return score, f'mIoU {score:.2f} of {len(present)} classes'


def worst_first(judged: Sequence[Judged]) -> list[Judged]:
    """By score, then name."""
    return sorted(judged, key=lambda one: (one.score, one.name))


def draw_worst(
    judged: Sequence[Judged],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    path: str | Path,
    score_thr: float = 0.3,
) -> Path:
    """Draw a column per image: its ground truth above, the prediction below.

    Args:
        judged (Sequence[Judged]): In the order of the columns.
        classes (Sequence[str]): Names.
        palette (Sequence[tuple]): RGB in 0..255 of each class.
        path (str | Path): The picture to write.
        score_thr (float): Instances below are not drawn. Defaults to 0.3.

    Returns:
        Path: ``path``.
    """
    number = len(judged)
    tallest = max(one.image.shape[0] / one.image.shape[1] for one in judged)
    height = 2 * min(2.3 * tallest, 4.0) + 1.1
    figure = Figure(figsize=(2.4 * number + 0.4, height), dpi=120, layout='constrained')
    grid = figure.subplots(2, number, squeeze=False)
    seen = set()
    for column, one in enumerate(judged):
        is_map = isinstance(one.truth, Segments)
        threshold = 'predicted' if is_map else f'predicted, score ≥ {score_thr:g}'
        for row, what in enumerate((one.truth, one.prediction)):
            shown = what if is_map else what.above(score_thr)
            if not is_map and one.prediction.masks is None:
                shown.masks = None  # a truth with masks beside boxes would look like another image
            seen |= set(np.unique(shown.label_map if is_map else shown.labels).tolist())
            axes = grid[row, column]
            axes.imshow(_thumbnail(one.image, shown, classes, palette, with_scores=row == 1))
            axes.set(xticks=[], yticks=[])
        grid[0, column].set_title(_short(one.name), fontsize=8)
        grid[1, column].set_xlabel(one.said, fontsize=8)
    grid[0, 0].set_ylabel('ground truth')
    grid[1, 0].set_ylabel(threshold)
    colours = unit_colours(palette)
    handles = [
        Patch(facecolor=colours[label], edgecolor='#444444', label=classes[label])
        for label in sorted(seen)
        if label < len(classes)
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc='outside lower center',
            frameon=False,
            fontsize=8,
            ncols=min(len(handles), 2 * number + 1),
        )
    return save(figure, path)


def _short(name: str, length: int = 34) -> str:
    return name if len(name) <= length else f'…{name[1 - length :]}'


def _thumbnail(
    image: np.ndarray,
    what: Prediction,
    classes: Sequence[str],
    palette: Sequence,
    with_scores: bool,
) -> np.ndarray:
    small, scaled = fit(image, what, THUMBNAIL)
    if isinstance(scaled, Segments):
        return draw_segments(small, scaled.label_map, palette)
    return draw_instances(small, scaled, classes, palette, with_scores)


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return shared / np.maximum(np.prod(box[2:] - box[:2]) + areas - shared, 1e-9)
