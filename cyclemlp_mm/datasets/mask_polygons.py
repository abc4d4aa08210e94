"""Polygons along the edges of a mask's pixels, from which COCO's tools regain the mask exactly."""

import numpy as np

# Steps along pixel edges as (x, y), in the order of right turns on the screen.
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def boundary_loops(mask: np.ndarray) -> 'list[list[tuple[int, int]]]':
    """Trace the boundaries between the pixels inside and outside of a mask.

    Args:
        mask (numpy.ndarray): bool of shape (H, W).

    Returns:
        list[list[tuple[int, int]]]: For each boundary the corners (x, y) on the grid of pixel
        edges, where pixel (0, 0) reaches from (0, 0) to (1, 1). The mask lies on the right hand,
        so that boundaries around holes run the other way. Pixels that touch at a corner only are
        not connected.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # For each direction: the pixels with such an edge, and where in the pixel the edge starts.
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))
    edges = {}
    for direction, (neighbour, (right, down)) in enumerate(zip(neighbours, starts)):
        rows, columns = np.nonzero(inside & ~neighbour)
        for x, y in zip((columns + right).tolist(), (rows + down).tolist()):
            edges[x, y, direction] = None

    loops = []
    while edges:
        x, y, direction = first = next(iter(edges))
        loop = []
        while (x, y, direction) in edges:
            del edges[x, y, direction]
            x, y = x + STEPS[direction][0], y + STEPS[direction][1]
            # Right, straight on, left: the right turn stays with the pixel at a touching corner.
            for turned in ((direction + 1) % 4, direction, (direction + 3) % 4):
                if (x, y, turned) in edges or (x, y, turned) == first:
                    break
            if turned != direction:
                loop.append((x, y))
            direction = turned
        loops.append(loop)
    return loops


def signed_area(loop: 'list[tuple[int, int]]') -> int:
    """Area within a boundary: positive around pixels of the mask, negative around a hole.

    Args:
        loop (list[tuple[int, int]]): Corners (x, y).

    Returns:
        int: The area in pixels.
    """
    turned = loop[1:] + loop[:1]
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(loop, turned)) // 2


def mask_to_polygons(mask: np.ndarray) -> 'list[list[float]]':
    """Polygons that cover exactly the pixels of a mask.

    COCO's format knows no holes: a mask with a hole is cut in two along a column through the
    hole, until no part has one. The polygons do not overlap.

    Args:
        mask (numpy.ndarray): bool of shape (H, W).

    Returns:
        list[list[float]]: For each polygon x1, y1, x2, y2, ...; none for an empty mask.
    """
    loops = boundary_loops(mask)
    for loop in loops:
        if signed_area(loop) < 0:
            columns = [x for x, _ in loop]
            cut = (min(columns) + max(columns)) // 2
            left, right = mask.copy(), mask.copy()
            left[:, cut:] = False
            right[:, :cut] = False
            return mask_to_polygons(left) + mask_to_polygons(right)
    return [[float(value) for corner in loop for value in corner] for loop in loops]
