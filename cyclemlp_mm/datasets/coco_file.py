"""COCO annotation files: read once, and judged once for the check and for the data sets.

COCO's own training file is 448 MB of text, gigabytes as Python objects, and takes seconds to read.
"""

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
#: What :func:`annotations_kept` keeps, by file; None outside of it.
_kept: dict[Path, dict] | None = None

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
    """An annotation file, and what is wrong with it."""

    content: dict  # of read_coco
    categories: dict  # names by id, in the order of the file
    images: list[dict]  # those with an id and a file name
    sizes: dict  # width and height by image id, where there are both
    used: list[dict]  # annotations that reach training or evaluation, with crowds
    troubles: dict[str, list[tuple[int, object]]]  # by kind: number in the file, annotation
    errors: list[tuple[str, str]]  # what cannot be trained or evaluated, and how to fix it


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
    was_enabled, _kept = gc.isenabled(), {}
    gc.disable()
    try:
        yield
    finally:
        _kept = None
        if was_enabled:
            gc.enable()


def read_coco(ann_file: Path) -> dict:
    """The lists 'images', 'annotations' and 'categories' of a file, of anything; not to be changed.

    Raises:
        UserError: It is no JSON, or lacks a list.
        OSError: It cannot be read.
    """
    with annotations_kept():
        key = ann_file.resolve()
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
    content = content if isinstance(content, dict) else {}
    lacking = [key for key in _LISTS if key not in content and key != 'annotations']
    if lacking:
        raise UserError(f'{ann_file} is no COCO annotation file: it lacks {lacking}')
    content.setdefault('annotations', [])  # COCO's lists of test images have none
    for key in _LISTS:
        if not isinstance(content[key], list):
            raise UserError(f'{ann_file}: its "{key}" is not a list, but {str(content[key])[:40]}')
    return content


def category_names(ann_file: Path, needs_masks: bool) -> dict[int, str]:
    """Names of an annotation file's categories, by their ids, in the order of the file.

    Raises:
        UserError: As :func:`read_coco`; categories without id or name, or double ones; none of the
            annotations has a mask, and masks are needed.
    """
    content = read_coco(ann_file)
    listed = [one if isinstance(one, dict) else {} for one in content['categories']]
    if not all(_is_id(one.get('id')) and isinstance(one.get('name'), str) for one in listed):
        raise UserError(f'{ann_file}: each of its categories needs an "id" and a "name" (a text)')
    categories = {one['id']: one['name'] for one in listed}
    if not categories:
        raise UserError(f'{ann_file} has no categories')
    if len(set(categories.values())) != len(listed):
        raise UserError(f'{ann_file}: category ids or names are double: {content["categories"]}')
    masks = (ann.get('segmentation') for ann in content['annotations'] if isinstance(ann, dict))
    if needs_masks and content['annotations'] and not any(masks):
        what = 'has boxes but no "segmentation": a mask head needs masks'
        raise UserError(f'{ann_file} {what}; take a RetinaNet config')
    return categories


def judge_coco(ann_file: Path, needs_masks: bool = False) -> JudgedCoco:
    """Read a file and find what is wrong with its images and boxes; raises as category_names."""
    categories = category_names(ann_file, needs_masks)
    content, errors = read_coco(ann_file), []
    images = [image if isinstance(image, dict) else {} for image in content['images']]
    wrong = [n for n, image in enumerate(images) if not (_is_named(image) and has_size(image))]
    if wrong:
        what = f'{count(len(wrong), "image")} lack "id" (a number or a text), "file_name" (a text; '
        what += 'LVIS\'s is the end of coco_url), or "width" and "height" above 0'
        errors.append((f'{what}, e.g. number {some(wrong)} in the list', 'Write all four'))
    named = [image for image in images if _is_named(image)]
    double = [i for i, n in Counter(image['id'] for image in named).items() if n > 1]
    if double:
        what = f'{count(len(double), "image id")} are used twice: {some(double)}'
        errors.append((what, 'Number the images again'))
    sizes = {image['id']: (image['width'], image['height']) for image in named if has_size(image)}
    for ids, of in ((sizes, 'images'), (categories, 'categories')):
        if _are_lost(ids):
            what = f'the ids of its {of} mix numbers and texts, or numbers too large'
            errors.append((f'{what}: {some(list(ids))}', 'Number them from 1'))
    used, troubles = [], defaultdict(list)
    for number, ann in enumerate(content['annotations']):
        trouble = _malformed(ann) or _box_trouble(ann, categories, sizes)
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
    ids = [ann.get('id', n) if isinstance(ann, dict) else n for n, ann in these]
    return f'{len(these)} of {count(len(of_all), "box")} {trouble}, ids {some(ids)}'


def has_size(image: dict) -> bool:
    """Whether an entry of "images" has a width and a height above 0."""
    return all(is_number(image.get(side)) and image[side] > 0 for side in ('width', 'height'))


def is_crowd(ann: dict) -> bool:
    """Whether an object is neither learned nor searched for: "iscrowd" or "ignore" of 1."""
    return bool(ann.get('iscrowd') or ann.get('ignore'))


def _is_named(image: dict) -> bool:
    return _is_id(image.get('id')) and isinstance(image.get('file_name'), str)


def _is_id(value: object) -> bool:
    return isinstance(value, str) or is_number(value)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _are_lost(ids: Iterable) -> bool:
    """Whether pycocotools loses ids, and so objects in the evaluation, in ``np.unique``.

    Numbers among texts become texts; large ones among negative ones or fractions are rounded.
    """
    ids = set(ids)
    return bool(ids) and set(np.unique(list(ids)).tolist()) != ids


#: Keys of an annotation, and what their values have to be.
_FIELDS = {
    'bbox': (_is_box, 'four finite numbers [x, y, width, height]'),
    **dict.fromkeys(('id', 'image_id', 'category_id'), (_is_id, 'a number or a text')),
    'area': (is_number, 'a finite number'),
    **dict.fromkeys(('iscrowd', 'ignore'), (lambda flag: flag in (None, 0, 1), '0 or 1')),
}


def _malformed(ann: object) -> str | None:
    if not isinstance(ann, dict):
        return f'{MALFORMED} (no object)'
    for key, (is_right, expected) in _FIELDS.items():
        if not is_right(ann.get(key)):
            return f'{MALFORMED}: "{key}" is not {expected}'
    return None


def _box_trouble(ann: dict, categories: dict, sizes: dict) -> str | None:
    """What is wrong with a well-formed annotation, apart from its mask."""
    if ann['category_id'] not in categories:
        return UNKNOWN
    if ann['image_id'] not in sizes:
        return NO_IMAGE
    x, y, width, height = ann['bbox']
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
    """What is wrong with a "segmentation" of an image of a size (width, height).

    Args:
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
    is_flat = array.ndim == 1 and array.dtype.kind in 'iuf'
    return not values or (is_flat and bool(np.isfinite(array).all()))


def _rle_trouble(mask: dict, size: tuple[int, int]) -> str | None:
    """What is wrong with a run-length code; pycocotools reads and writes beyond its memory."""
    (width, height), counts = size, mask.get('counts')
    if mask.get('size') != [height, width]:
        return 'have an RLE whose "size" is not [height, width] of their image'
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    is_list = isinstance(runs, list) and bool(runs)
    if not is_list or any(type(run) is not int or run < 0 for run in runs):
        return 'have an RLE whose "counts" cannot be decoded (of bytes, take .decode(), not str())'
    if sum(runs) != height * width:
        return 'have an RLE whose "counts" end before the last pixel of their image, or after it'
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
