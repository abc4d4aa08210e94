"""What is wrong with annotations of a COCO file: one judgement for the check and for what is read.

:func:`box_trouble` and :func:`mask_trouble` return the end of a sentence ("3 of 12 boxes …").
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cyclemlp_mm.checks import is_number

UNKNOWN = 'have an unknown category id; they are left out of training and evaluation'
NO_IMAGE = 'belong to no image of the file; they are left out of training and evaluation'
NO_AREA = (
    'have no area (width, height or "area" of 0 or less); they are left out of training and '
    'evaluation'
)
OUTSIDE = 'lie outside their image; they are left out of training and evaluation'
THIN = 'are thinner than 1 pixel; mmdet does not train them, but the evaluation counts them'
CUT = 'reach beyond the image; mmdet cuts them in training, the evaluation takes them as they are'
SHORT = 'have no polygon of at least three points'
MALFORMED = 'are malformed'
#: Never found, whatever is predicted: in neither training nor evaluation.
LEFT_OUT = (UNKNOWN, NO_IMAGE, NO_AREA, OUTSIDE)


def image_sizes(images: Iterable[dict]) -> dict:
    """Width and height of the images that have an id and a size, by id."""
    return {
        image['id']: (image['width'], image['height'])
        for image in images
        if isinstance(image, dict) and is_id(image.get('id')) and has_size(image)
    }


def has_size(image: dict) -> bool:
    """Whether an entry of "images" has a width and a height above 0."""
    return all(is_number(image.get(side)) and image[side] > 0 for side in ('width', 'height'))


def is_id(value: object) -> bool:
    """Whether a value is an id: a number or a text."""
    return isinstance(value, str) or is_number(value)


def unsortable(ids: Iterable) -> bool:
    """Whether pycocotools loses ids: it passes them through ``np.unique``.

    Numbers beside texts become texts, and large numbers beside negative ones or fractions are
    rounded. Objects under such ids would be missing in the evaluation without an error.
    """
    ids = set(ids)
    return bool(ids) and set(np.unique(list(ids)).tolist()) != ids


def is_crowd(ann: dict) -> bool:
    """Whether an object is neither learned nor searched for: "iscrowd" or "ignore" of 1."""
    return bool(ann.get('iscrowd') or ann.get('ignore'))


def box_trouble(ann: object, categories: dict, sizes: dict) -> str | None:
    """What is wrong with an annotation, apart from its mask.

    Args:
        ann (object): Entry of "annotations".
        categories (dict): By category id.
        sizes (dict): See :func:`image_sizes`.

    Returns:
        str | None: End of a sentence.
    """
    if not isinstance(ann, dict):
        return f'{MALFORMED} (no object)'
    box = ann.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f'{MALFORMED}: "bbox" is not four finite numbers [x, y, width, height]'
    missing = [key for key in ('id', 'image_id', 'category_id', 'area') if key not in ann]
    if missing:
        return f'{MALFORMED}: they lack {", ".join(missing)}'
    strange = [key for key in ('id', 'image_id', 'category_id') if not is_id(ann[key])]
    if strange:
        return f'{MALFORMED}: {", ".join(strange)} is no number'
    if not is_number(ann['area']):
        return f'{MALFORMED}: "area" is no finite number'
    for key in ('iscrowd', 'ignore'):
        if ann.get(key) not in (None, 0, 1):
            return f'{MALFORMED}: "{key}" is neither 0 nor 1'
    if ann['category_id'] not in categories:
        return UNKNOWN
    if ann['image_id'] not in sizes:
        return NO_IMAGE
    x, y, width, height = box
    if width <= 0 or height <= 0 or ann['area'] <= 0:
        return NO_AREA
    image_width, image_height = sizes[ann['image_id']]
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return OUTSIDE
    if width < 1 or height < 1:
        return THIN
    if x < -1 or y < -1 or x + width > image_width + 1 or y + height > image_height + 1:
        return CUT
    return None


def mask_trouble(mask: object, size: tuple[int, int], is_evaluated: bool) -> str | None:
    """What is wrong with a "segmentation" that is decoded by mmdet or pycocotools.

    Args:
        mask (object): Polygons, or a run-length code as list or text.
        size (tuple[int, int]): Width and height of the image.
        is_evaluated (bool): Whether pycocotools reads it, not only mmdet.

    Returns:
        str | None: End of a sentence; ``SHORT`` is harmless, as mmdet drops such masks.
    """
    if not mask:
        return 'have no "segmentation", and masks are needed of all'
    if isinstance(mask, dict):
        return _rle_trouble(mask, size)
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return 'have a "segmentation" that is no list of polygons (lists of numbers) and no RLE'
    if not all(map(_are_numbers, mask)):
        return 'have polygons of something else than finite numbers'
    if is_evaluated and len(mask[0]) <= 4:
        return 'begin with a polygon of less than three points, which pycocotools cannot read'
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
        return SHORT
    return None


def _are_numbers(values: list) -> bool:
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # lists of several lengths
        return False
    return not values or (
        array.ndim == 1 and array.dtype.kind in 'iuf' and bool(np.isfinite(array).all())
    )


def _rle_trouble(mask: dict, size: tuple[int, int]) -> str | None:
    """What is wrong with a run-length code; pycocotools reads and writes beyond its memory."""
    width, height = size
    counts = mask.get('counts')
    if not isinstance(counts, (list, str)) or 'size' not in mask:
        return 'have an RLE without "size" and "counts"'
    if mask['size'] != [height, width]:
        return 'have an RLE whose "size" is not [height, width] of their image'
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
        return 'have an RLE whose "counts" cannot be decoded: str() of bytes, take .decode()'
    if not runs or any(type(run) is not int or run < 0 for run in runs):
        return 'have an RLE whose "counts" cannot be decoded'
    if sum(runs) > height * width:
        return 'have an RLE of more pixels than their image has'
    if sum(runs) < height * width:
        return (
            'have an RLE whose "counts" end before the last pixel of their image (the last run '
            'left out, or the runs of a part of the image)'
        )
    return None


def decode_runs(text: str) -> list[int]:
    """COCO's compressed counts: 5 bits a character, differences from the last but one; or []."""
    runs, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return []
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # goes on
            continue
        if code & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return [] if shift else runs
