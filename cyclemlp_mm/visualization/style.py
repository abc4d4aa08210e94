"""How our figures look: colours that all can tell apart, nothing clipped, nothing half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cyclemlp_mm.engine.palette import OKABE_ITO
from cyclemlp_mm.errors import UserError

BLUE, ORANGE = '#0072b2', '#d55e00'  # Okabe and Ito's, told apart by all

#: One per curve; with LINE_STYLES, also told apart in grey. Yellow is left out: too pale for lines.
LINE_COLOURS = (BLUE, ORANGE) + tuple(
    '#{:02x}{:02x}{:02x}'.format(*OKABE_ITO[i]) for i in (2, 6, 0, 1)
)
LINE_STYLES = ('-', '--', '-.', ':')


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; its folder is made if need be.

    Args:
        figure (Figure): Of matplotlib.
        path (str | Path): The file; its suffix says the format, as .png, .svg or .pdf.

    Returns:
        Path: ``path``.

    Raises:
        UserError: matplotlib knows no such format, or the file cannot be written.
    """
    path = Path(path)
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip('.').lower() not in known:
        raise UserError(f'{path}: a figure is written as {", ".join(sorted(known))}, by its suffix')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}') from error
    return path


def unit_colours(palette: list[tuple[int, int, int]]) -> np.ndarray:
    """RGB in 0..255, as matplotlib wants them: float, (N, 3), in 0..1."""
    return np.asarray(palette, float).reshape(-1, 3) / 255
