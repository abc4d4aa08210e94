"""Predictions next to ground truth, the worst images first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torchvision.ops import box_iou

from cyclemlp_mm.inference.predictions import Instances, Prediction, Segments

from .figures import save
from .overlay import Palette, Style, draw_prediction, fit


@dataclass
class Judged:
    """A file's name and RGB image, (H, W, 3), its truth and prediction, and their score in words.

    The scores of true instances are 1; ``score`` is F1 of the boxes, or mIoU.
    """

    name: str
    image: np.ndarray
    truth: Prediction
    prediction: Prediction
    score: float
    summary: str


def judge_instances(
    truth: Instances, found: Instances, score_thr: float, ignored: np.ndarray | None = None
) -> tuple[float, str]:
    """F1 of one image's boxes at an IoU of 0.5, the best score first, and a text.

    Predictions below ``score_thr`` do not count, nor do true boxes that are ``ignored``, bool (N,),
    and what lies on them. F1 is 1 where nothing is to be found and nothing was.
    """
    found = found.above(score_thr)
    if ignored is None:
        ignored = np.zeros(len(truth), bool)
    iou = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(truth.boxes))
    iou = iou.nan_to_num().numpy() * (found.labels[:, None] == truth.labels)
    hits = wrong = 0
    for i in np.argsort(-found.scores, kind='stable'):
        best = iou[i].argmax() if len(truth) else None
        if best is None or iou[i, best] < 0.5:
            wrong += 1
        elif not ignored[best]:
            iou[:, best] = 0  # taken
            hits += 1
    wanted = int((~ignored).sum())
    f1 = 2 * hits / (hits + wrong + wanted) if hits + wrong + wanted else 1.0
    return f1, f'F1 {f1:.2f}: {hits} of {wanted} found, {wrong} wrong'


def judge_segments(truth: Segments, found: Segments, num_classes: int) -> tuple[float, str]:
    """Mean IoU over the classes in one image's truth, 1 where no pixel counts, and a text."""
    counts = truth.label_map < num_classes
    labels, guesses = truth.label_map[counts], found.label_map[counts]
    present = np.unique(labels)
    if not len(present):
        return 1.0, 'nothing labelled'
    pairs = ((labels == c, guesses == c) for c in present)
    score = float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))
    return score, f'mIoU {score:.2f} of {len(present)} classes'


def draw_gallery(
    judged: Sequence[Judged],
    classes: Sequence[str],
    palette: Palette,
    path: str | Path,
    style: Style = Style(),  # noqa: B008 (is not changed)
) -> Path:
    """Draw a column per image, the truth above the prediction; returns ``path``."""
    number = len(judged)
    tallest = max(one.image.shape[0] / one.image.shape[1] for one in judged)
    height = 2 * min(2.3 * tallest, 4.0) + 1.1
    figure = Figure(figsize=(2.4 * number + 0.4, height), dpi=120, layout='constrained')
    grid = figure.subplots(2, number, squeeze=False)
    seen = set()
    for column, one in zip(grid.T, judged, strict=True):
        for axes, what in zip(column, (one.truth, one.prediction), strict=True):
            is_map = isinstance(what, Segments)
            shown = what if is_map else what.above(style.score_thr)
            if not is_map and one.prediction.masks is None:
                shown.masks = None  # a truth with masks next to boxes would look like another image
            seen |= set(np.unique(shown.label_map if is_map else shown.labels).tolist())
            small, shown = fit(one.image, shown, 320)
            look = replace(style, hide_scores=style.hide_scores or what is one.truth, longer_side=1)
            axes.imshow(draw_prediction(small, shown, classes, palette, look))
            axes.set(xticks=[], yticks=[])
        name = one.name if len(one.name) <= 34 else f'…{one.name[-33:]}'
        column[0].set_title(name, fontsize=8)
        column[1].set_xlabel(one.summary, fontsize=8)
    grid[0, 0].set_ylabel('ground truth')
    grid[1, 0].set_ylabel('predicted' if is_map else f'predicted, score ≥ {style.score_thr:g}')
    _add_legend(figure, seen, classes, palette, 2 * number + 1)
    return save(figure, path)


def draw_tasks(
    images: Sequence[np.ndarray],
    found: Mapping[str, Sequence[Prediction]],
    classes: Sequence[str],
    palette: Palette,
    path: str | Path,
    score_thr: float = 0.5,
) -> Path:
    """Draw a row per image, RGB uint8 (H, W, 3): the image, then what was found with a score of
    ``score_thr`` or more, by title."""
    figure = Figure(figsize=(2.9 * len(found) + 2.9, 2.9 * len(images) + 0.55), dpi=140)
    figure.set_layout_engine('constrained', h_pad=0.05, w_pad=0.02)
    grid = figure.subplots(len(images), len(found) + 1, squeeze=False)
    for i, row in enumerate(grid):
        nothing = Instances(*np.zeros((3, 0, 4), np.float32))
        columns = {'image': nothing} | {title: some[i] for title, some in found.items()}
        for axes, (title, prediction) in zip(row, columns.items(), strict=True):
            style = Style(score_thr, longer_side=256)
            axes.imshow(draw_prediction(images[i], prediction, classes, palette, style))
            axes.set(xticks=[], yticks=[])
            axes.set_title(title if i == 0 else '', fontsize=15)
    _add_legend(figure, range(len(classes)), classes, palette, len(classes), 14)
    return save(figure, path)


def _add_legend(
    figure: Figure,
    labels: Iterable[int],
    classes: Sequence[str],
    palette: Palette,
    columns: int,
    size: int = 8,
) -> None:
    labels = [i for i in sorted(labels) if i < len(classes)]
    handles = [Patch(fc=np.divide(palette[i], 255), ec='#444444', label=classes[i]) for i in labels]
    if handles:
        look = dict(loc='outside lower center', frameon=False, fontsize=size)
        figure.legend(handles=handles, ncols=min(len(handles), columns), **look)
