"""Colours for classes that come without."""

from __future__ import annotations

#: Okabe and Ito's colour-blind-safe colours (jfly.uni-koeln.de/color), without black.
OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def class_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """RGB colours in 0..255, one per class: the safe ones first, then darker rounds of them.

    Args:
        num_classes (int): How many.
    """
    colours = []
    for i in range(num_classes):
        shade = 0.75 ** (i // len(OKABE_ITO))
        colours.append(tuple(int(c * shade) for c in OKABE_ITO[i % len(OKABE_ITO)]))
    return colours
