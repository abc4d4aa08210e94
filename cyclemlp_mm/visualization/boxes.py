"""Boxes drawn on images: ground truth above, predictions below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle


@dataclass
class Boxes:
    """Boxes of one image.

    Attributes:
        xyxy (np.ndarray): (N, 4), pixels.
        labels (np.ndarray): (N,), int.
        scores (np.ndarray, optional): (N,), in 0..1; None for ground truth.
    """

    xyxy: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


def draw_gallery(
    images: Sequence[np.ndarray],
    truths: Sequence[Boxes],
    predictions: Sequence[Boxes],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    path: str | Path,
    score_thr: float = 0.5,
) -> Path:
    """Draw a column per image: its ground truth above, its predictions below.

    Args:
        images (Sequence[np.ndarray]): RGB uint8, (H, W, 3).
        truths (Sequence[Boxes]): Ground truth of each image.
        predictions (Sequence[Boxes]): Predictions for each image.
        classes (Sequence[str]): Names.
        palette (Sequence[tuple]): RGB in 0..255 of each class.
        path (str | Path): The PNG to write.
        score_thr (float): Predictions below are left out. Defaults to 0.5.

    Returns:
        Path: ``path``.
    """
    figure = Figure(figsize=(2.4 * len(images), 5.6), dpi=120, layout='constrained')
    grid = figure.subplots(2, len(images), squeeze=False)
    for column, image in enumerate(images):
        for row, boxes in enumerate((truths[column], predictions[column])):
            axes = grid[row, column]
            axes.imshow(image, interpolation='nearest')
            axes.set(xticks=[], yticks=[])
            _draw_boxes(axes, boxes, palette, score_thr)
    grid[0, 0].set_ylabel('ground truth')
    grid[1, 0].set_ylabel(f'predicted, score ≥ {score_thr:g}')
    handles = [
        Patch(color=np.array(colour) / 255, label=name)
        for name, colour in zip(classes, palette, strict=True)
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(classes), frameon=False)
    figure.savefig(path)
    return Path(path)


def _draw_boxes(axes, boxes: Boxes, palette: Sequence, score_thr: float) -> None:
    for i, (x1, y1, x2, y2) in enumerate(boxes.xyxy):
        if boxes.scores is not None and boxes.scores[i] < score_thr:
            continue
        colour = np.array(palette[boxes.labels[i]]) / 255
        # A dark line under the coloured one: seen on any background.
        for line, width in (('black', 3.2), (colour, 1.8)):
            axes.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=line, linewidth=width)
            )
        if boxes.scores is not None:
            axes.text(
                x1,
                y1,
                f'{boxes.scores[i]:.2f}',
                fontsize=7,
                color='black',
                va='bottom',
                bbox=dict(facecolor=colour, edgecolor='none', pad=0.8),
                clip_on=True,
            )
