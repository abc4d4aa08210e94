"""A confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .figures import save

#: Above this number of classes, cells are too small for numbers.
MOST_NUMBERS = 25


def draw_confusion_matrix(
    matrix: np.ndarray, names: Sequence[str], unit: str, path: str | Path
) -> Path:
    """Draw a confusion matrix, a row per true class; returns ``path``.

    Args:
        matrix (np.ndarray): Counts, int (N, N): true class, predicted class. With (N + 1, N + 1),
            the last row is what was found on the background, the last column what was missed.
        names (Sequence[str]): Names of the N classes.
        unit (str): What was counted, in the plural.
        path (str | Path): Where to write the picture.
    """
    rows, columns = list(names), list(names)
    if len(matrix) > len(names):
        rows, columns = [*names, 'background'], [*names, 'missed']
    number = len(rows)
    per_cent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(3.6, min(0.45 * number, 20)) + 1.6
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(per_cent, cmap='Blues', vmin=0, vmax=100)
    size = 9 if number <= MOST_NUMBERS else 5
    axes.set_xticks(range(number), map(_shorten, columns), rotation=45, ha='right', fontsize=size)
    totals = [f'{_shorten(name)} ({n})' for name, n in zip(rows, matrix.sum(1), strict=True)]
    axes.set_yticks(range(number), totals, fontsize=size)
    axes.set(xlabel='predicted', ylabel=f'true ({unit})', title='per cent of each row')
    for row, column in np.argwhere(matrix) if number <= MOST_NUMBERS else ():
        value = per_cent[row, column]
        colour = 'white' if value > 55 else '#333333'
        text = f'{value:.0f}' if value >= 0.5 else '<1'
        axes.text(column, row, text, ha='center', va='center', color=colour, fontsize=8)
    figure.colorbar(image, shrink=0.8)
    return save(figure, path)


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else f'{name[:23]}…'
