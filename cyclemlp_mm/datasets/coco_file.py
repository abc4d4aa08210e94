"""COCO annotation files: read once, and judged once for the check and for the data sets.

COCO's own training file is 448 MB of text, gigabytes as Python objects, and takes seconds to read.
"""

from __future__ import annotations

import gc
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cyclemlp_mm.checks import is_number
from cyclemlp_mm.errors import UserError, count, some

_LISTS = ('images', 'annotations', 'categories')
#: What :func:`annotations_kept` keeps, by file and state of it; None outside of it.
_kept: dict[tuple, dict] | None = None

# What is wrong with boxes, as the end of a sentence ("3 of 12 boxes …").
_LEFT_OUT = 'they are left out of training and evaluation'
UNKNOWN = f'have an unknown category id; {_LEFT_OUT}'
NO_IMAGE = f'belong to no image of the file; {_LEFT_OUT}'
NO_AREA = f'have no area (width, height or "area" of 0 or less); {_LEFT_OUT}'
OUTSIDE = f'lie outside their image; {_LEFT_OUT}'
THIN = 'are thinner than 1 pixel; mmdet does not train them, but the evaluation counts them'
CUT = 'reach beyond the image; mmdet cuts them in training, the evaluation takes them as they are'
SHORT = 'have no polygon of at least three points'
MALFORMED = 'are malformed'
#: Never found, whatever is predicted: in neither training nor evaluation.
LEFT_OUT = (UNKNOWN, NO_IMAGE, NO_AREA, OUTSIDE)


class JudgedCoco(NamedTuple):
    """An annotation file, and what is wrong with it.

    Attributes:
        content (dict): Of :func:`read_coco`.
        categories (dict): Names by id, in the order of the file.
        images (list[dict]): Those with an id and a file name.
        sizes (dict): Width and height by image id, where there are both.
        used (list[dict]): Annotations that reach training or evaluation, with crowds.
        troubles (dict): Of each kind of trouble of boxes, (number in the file, annotation).
        errors (list[tuple[str, str]]): What cannot be trained or evaluated, and how to fix it.
    """

    content: dict
    categories: dict
    images: list[dict]
    sizes: dict
    used: list[dict]
    troubles: dict[str, list[tuple[int, object]]]
    errors: list[tuple[str, str]]


@contextmanager
def annotations_kept() -> Iterator[None]:
    """Inside, an annotation file is read once; at the end, nothing of it is kept.

    Python's collector of cycles is paused: JSON has none, and to look for some among millions of
    objects again and again takes longer than to read them.
    """
    global _kept
    if _kept is not None:  # an outer one lets go
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    _kept = {}
    try:
        yield
    finally:
        _kept = None
        if was_enabled:
            gc.enable()


def read_coco(ann_file: Path) -> dict:
    """What an annotation file holds; its lists may hold anything.

    Args:
        ann_file (Path): The file. Inside of :func:`annotations_kept`, it is read again only if it
            was written since.

    Returns:
        dict: With the lists 'images', 'annotations' and 'categories'. Not to be changed.

    Raises:
        UserError: It is no JSON, or lacks a list.
        OSError: It cannot be read.
    """
    state = ann_file.stat()
    key = (ann_file.resolve(), state.st_mtime_ns, state.st_size)
    with annotations_kept():
        if key not in _kept:
            _kept[key] = _parse(ann_file)
        return _kept[key]


def _parse(ann_file: Path) -> dict:
    try:
        content = json.loads(ann_file.read_bytes())  # UTF-8, also with a mark, 16 or 32
    except UnicodeDecodeError as error:
        raise UserError(f'{ann_file} is not in UTF-8: save it as UTF-8 ({error})') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{ann_file} is no JSON: {error}') from error
    if isinstance(content, dict):
        content.setdefault('annotations', [])  # COCO's lists of test images have none
    lacking = [k for k in _LISTS if not isinstance(content, dict) or k not in content]
    if lacking:
        raise UserError(f'{ann_file} is no COCO annotation file: it lacks {lacking}')
    for key in _LISTS:
        if not isinstance(content[key], list):
            raise UserError(f'{ann_file}: its "{key}" is not a list, but {str(content[key])[:40]}')
    return content


def category_names(ann_file: Path, needs_masks: bool) -> dict[int, str]:
    """Names of an annotation file's categories, by their ids, in the order of the file.

    Args:
        ann_file (Path): The file.
        needs_masks (bool): Whether its annotations have to have masks.

    Raises:
        UserError: As :func:`read_coco`; categories without id or name, or double ones; none of the
            annotations has a mask, and masks are needed.
        OSError: It cannot be read.
    """
    content = read_coco(ann_file)
    try:
        categories = {category['id']: category['name'] for category in content['categories']}
        are_named = all(isinstance(name, str) for name in categories.values())
    except (KeyError, TypeError):
        are_named = False
    if not are_named:
        raise UserError(f'{ann_file}: each of its categories needs an "id" and a "name" (a text)')
    if not categories:
        raise UserError(f'{ann_file} has no categories')
    if len(set(categories.values())) != len(content['categories']):
        raise UserError(f'{ann_file}: category ids or names are double: {content["categories"]}')
    masks = (ann.get('segmentation') for ann in content['annotations'] if isinstance(ann, dict))
    if needs_masks and content['annotations'] and not any(masks):
        raise UserError(
            f'{ann_file} has boxes but no "segmentation": a mask head needs masks; take a '
            'RetinaNet config'
        )
    return categories


def judge_coco(ann_file: Path, needs_masks: bool = False) -> JudgedCoco:
    """Read an annotation file and find what is wrong with its images and boxes.

    Args:
        ann_file (Path): The file.
        needs_masks (bool): Whether its annotations have to have masks. Defaults to False.

    Raises:
        UserError: As :func:`category_names`.
        OSError: It cannot be read.
    """
    categories = category_names(ann_file, needs_masks)
    content, errors = read_coco(ann_file), []
    images = [image if isinstance(image, dict) else {} for image in content['images']]
    for what, is_right in (
        ('lack "id" (a number or a text)', lambda image: _is_id(image.get('id'))),
        ('lack "file_name" (a text; LVIS\'s is the end of coco_url)', _has_name),
        ('have no "width" and "height" above 0', has_size),
    ):
        wrong = [number for number, image in enumerate(images) if not is_right(image)]
        if wrong:
            what = f'{count(len(wrong), "image")} {what}, e.g. number {some(wrong)} in the list'
            errors.append((what, 'Write "id", "file_name", "width" and "height" of each image'))
    named = [image for image in images if _is_id(image.get('id')) and _has_name(image)]
    double = [i for i, n in Counter(image['id'] for image in named).items() if n > 1]
    if double:
        what = f'{count(len(double), "image id")} are used twice: {some(double)}'
        errors.append((what, 'Number the images again'))
    sizes = {image['id']: (image['width'], image['height']) for image in named if has_size(image)}
    for ids, of in ((sizes, 'images'), (categories, 'categories')):
        if _are_lost(ids):
            what = (
                f'the ids of its {of} mix numbers and texts, or numbers too large: '
                f'{some(list(ids))}; the evaluation would lose some'
            )
            errors.append((what, 'Number them from 1'))
    used, troubles = [], defaultdict(list)
    for number, ann in enumerate(content['annotations']):
        trouble = _box_trouble(ann, categories, sizes)
        if trouble:
            troubles[trouble].append((number, ann))
        if trouble in (None, THIN, CUT):
            used.append(ann)
    for trouble in [trouble for trouble in troubles if trouble.startswith(MALFORMED)]:
        what = of_boxes(troubles.pop(trouble), content['annotations'], trouble)
        errors.append((what, 'Correct these annotations, or take them out of the file'))
    return JudgedCoco(content, categories, named, sizes, used, troubles, errors)


def of_boxes(these: list[tuple[int, object]], of_all: list, trouble: str) -> str:
    """'2 of 9 boxes have …, ids 3, 4'."""
    ids = [
        ann.get('id', f'number {number}') if isinstance(ann, dict) else number
        for number, ann in these
    ]
    return f'{len(these)} of {count(len(of_all), "box")} {trouble}, ids {some(ids)}'


def has_size(image: dict) -> bool:
    """Whether an entry of "images" has a width and a height above 0."""
    return all(is_number(image.get(side)) and image[side] > 0 for side in ('width', 'height'))


def is_crowd(ann: dict) -> bool:
    """Whether an object is neither learned nor searched for: "iscrowd" or "ignore" of 1."""
    return bool(ann.get('iscrowd') or ann.get('ignore'))


def _has_name(image: dict) -> bool:
    return isinstance(image.get('file_name'), str)


def _is_id(value: object) -> bool:
    return isinstance(value, str) or is_number(value)


def _are_lost(ids: Iterable) -> bool:
    """Whether pycocotools loses ids: it passes them through ``np.unique``.

    Numbers beside texts become texts, and large numbers beside negative ones or fractions are
    rounded. Objects under such ids would be missing in the evaluation without an error.
    """
    ids = set(ids)
    return bool(ids) and set(np.unique(list(ids)).tolist()) != ids


def _box_trouble(ann: object, categories: dict, sizes: dict) -> str | None:
    """What is wrong with an annotation, apart from its mask."""
    if not isinstance(ann, dict):
        return f'{MALFORMED} (no object)'
    box = ann.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f'{MALFORMED}: "bbox" is not four finite numbers [x, y, width, height]'
    missing = [key for key in ('id', 'image_id', 'category_id', 'area') if key not in ann]
    if missing:
        return f'{MALFORMED}: they lack {", ".join(missing)}'
    strange = [key for key in ('id', 'image_id', 'category_id') if not _is_id(ann[key])]
    if strange:
        return f'{MALFORMED}: {", ".join(strange)} is not a number'
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
        return 'have a "segmentation" that is neither a list of polygons (lists of numbers) nor RLE'
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
