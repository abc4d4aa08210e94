"""COCO annotation files: what mmdet drops silently, or fails on deep inside."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cyclemlp_mm.datasets.coco_file import category_names, read_coco
from cyclemlp_mm.errors import UserError

from .findings import Report, count, some
from .values import is_number

# Ends of sentences that are told apart.
_UNKNOWN = 'have an unknown category id; mmdet drops them'
_NO_IMAGE = 'belong to no image of the file; mmdet drops them'
_NO_AREA = 'have no area (width, height or area below 1 pixel); mmdet drops them'
_OUTSIDE = 'lie outside their image; mmdet drops them'
_SHORT = 'have no polygon of at least three points'
_CUT = 'reach beyond the image; mmdet cuts them'


def check_coco(
    report: Report, ann_file: Path, images: Path, classes: 'Sequence[str]', needs_masks: bool,
    is_evaluated: bool = False,
) -> 'list[tuple[str, dict]]':  # fmt: skip
    """Look at one annotation file.

    Args:
        report (Report): Gets the findings.
        ann_file (Path): The file.
        images (Path): Folder of the images.
        classes (Sequence[str]): Class names of the config.
        needs_masks (bool): Whether masks are learned from it, or compared with it.
        is_evaluated (bool): Whether pycocotools reads it as well, which asks for more. Defaults to
            False.

    Returns:
        list[tuple[str, dict]]: Image files that are there, each with its ``height`` and ``width``.
    """
    try:
        categories = category_names(ann_file, needs_masks)
        content = read_coco(ann_file)
    except (UserError, OSError) as error:
        report.error(ann_file, _without(str(error), ann_file), 'Write a COCO annotation file')
        return []
    annotations = content['annotations']
    _check_classes(report, ann_file, categories, annotations, classes)
    named = _check_images(report, ann_file, content['images'])
    sizes = {
        image['id']: (image['width'], image['height']) for image in named if _has_size(image)
    }
    troubles = [_trouble(ann, categories, sizes) for ann in annotations]
    _check_boxes(report, ann_file, annotations, troubles, categories, classes)
    if is_evaluated:
        _check_crowds(report, ann_file, annotations)
    if needs_masks:
        # What mmdet drops before it looks at masks, pycocotools still decodes.
        read = (None, _CUT, _NO_AREA, _OUTSIDE) if is_evaluated else (None, _CUT)
        masked = [
            ann for ann, trouble in zip(annotations, troubles)
            if trouble in read and categories[ann['category_id']] in classes
        ]  # fmt: skip
        _check_masks(report, ann_file, masked, sizes, is_evaluated)
    return _files(report, images, named)


def _check_classes(
    report: Report, where: Path, categories: dict, annotations: list, classes: 'Sequence[str]'
) -> None:
    absent = [name for name in classes if name not in categories.values()]
    if absent:
        report.error(
            where,
            f'{count(len(absent), "class name")} of the config are not in the file: {some(absent)} '
            f'(it has {some(list(categories.values()))}), so mmdet would drop their boxes silently',
            'Give --data DIR, which takes the names from the file, or set metainfo.classes',
        )
    unused = [i for i, name in categories.items() if name not in classes]
    if unused and not absent:
        ids = (a.get('category_id') for a in annotations if isinstance(a, dict))
        boxes = Counter(i for i in ids if _is_id(i))
        said = [f'{categories[i]} ({count(boxes[i], "box")})' for i in unused]
        report.warning(where, f'not trained, as the config does not name them: {some(said)}')


def _check_images(report: Report, where: Path, images: list) -> 'list[dict]':
    """The images that have an id and a name."""
    named = [
        image for image in images
        if isinstance(image, dict) and _is_id(image.get('id'))
        and isinstance(image.get('file_name'), str)
    ]  # fmt: skip
    if len(named) < len(images):
        kept = set(map(id, named))
        broken = [i for i, image in enumerate(images) if id(image) not in kept]
        report.error(where, f'{count(len(broken), "image")} lack "id" or "file_name" (a number and '
                            f'a text), e.g. number {some(broken)} in the list')  # fmt: skip
    double = [i for i, n in Counter(image['id'] for image in named).items() if n > 1]
    if double:
        report.error(where, f'{count(len(double), "image id")} are used twice: {some(double)}',
                     'Number the images anew')  # fmt: skip
    sizeless = [image['file_name'] for image in named if not _has_size(image)]
    if sizeless:
        report.error(
            where, f'{count(len(sizeless), "image")} have no "width" and "height" above 0: '
            f'{some(sizeless)}', 'Write the size of each image, in pixels',
        )  # fmt: skip
    return named


def _check_boxes(
    report: Report, where: Path, annotations: list, troubles: 'list[str | None]', categories: dict,
    classes: 'Sequence[str]',
) -> None:  # fmt: skip
    found: dict[str, list] = {}
    good = 0
    for number, (ann, trouble) in enumerate(zip(annotations, troubles)):
        if trouble:
            found.setdefault(trouble, []).append(_name(ann, number))
        if trouble in (None, _CUT) and not ann.get('iscrowd') and not ann.get('ignore'):
            good += categories[ann['category_id']] in classes
    ids = (ann.get('id') for ann in annotations if isinstance(ann, dict))
    double = [i for i, n in Counter(i for i in ids if _is_id(i)).items() if n > 1]
    if double:
        report.error(where, f'{count(len(double), "annotation id")} are used twice: '
                            f'{some(double)}', 'Number the annotations anew')  # fmt: skip
    for trouble, idents in found.items():
        add = report.error if trouble.startswith('are malformed') else report.warning
        of_all = f'{len(idents)} of {count(len(annotations), "box")}'
        add(where, f'{of_all} {trouble}, ids {some(idents)}')
    if not good:
        report.error(
            where,
            f'none of its {count(len(annotations), "box")} can be learned (those of crowds, with '
            '"iscrowd" or "ignore" of 1, are not)',
            'See the lines above, and the class names',
        )


def _check_crowds(report: Report, where: Path, annotations: list) -> None:
    """pycocotools asks each annotation whether it is of a crowd; mmdet does not."""
    silent = [
        _name(ann, number) for number, ann in enumerate(annotations)
        if isinstance(ann, dict) and ann.get('iscrowd') is None
    ]  # fmt: skip
    if silent:
        report.error(
            where,
            f'{len(silent)} of {count(len(annotations), "box")} have no "iscrowd", which the '
            f'evaluation reads, ids {some(silent)}',
            'Write "iscrowd": 0 into each annotation (1 for a box around a crowd)',
        )


def _trouble(ann: object, categories: dict, sizes: dict) -> 'str | None':
    """What is wrong with an annotation, as the end of a sentence."""
    if not isinstance(ann, dict):
        return 'are malformed (no object)'
    box = ann.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return 'are malformed: "bbox" is not four finite numbers [x, y, width, height]'
    missing = [key for key in ('id', 'image_id', 'category_id', 'area') if key not in ann]
    if missing:
        return f'are malformed: they lack {", ".join(missing)}'
    strange = [key for key in ('id', 'image_id', 'category_id') if not _is_id(ann[key])]
    if strange:
        return f'are malformed: {", ".join(strange)} is no number'
    if not is_number(ann['area']):
        return 'are malformed: "area" is no finite number'
    if ann.get('iscrowd') not in (None, 0, 1):
        return 'are malformed: "iscrowd" is neither 0 nor 1'
    if ann['category_id'] not in categories:
        return _UNKNOWN
    if ann['image_id'] not in sizes:
        return _NO_IMAGE
    x, y, width, height = box
    if width < 1 or height < 1 or ann['area'] <= 0:
        return _NO_AREA
    image_width, image_height = sizes[ann['image_id']]
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return _OUTSIDE
    if x < -1 or y < -1 or x + width > image_width + 1 or y + height > image_height + 1:
        return _CUT
    return None


def _check_masks(
    report: Report, where: Path, annotations: 'list[dict]', sizes: dict, is_evaluated: bool
) -> None:
    """Masks that stop the training or the evaluation, and such that are only dropped."""
    found: dict[str, list] = {}
    for ann in annotations:
        trouble = _mask_trouble(ann.get('segmentation'), sizes[ann['image_id']], is_evaluated)
        if trouble:
            found.setdefault(trouble, []).append(ann['id'])
    for trouble, idents in found.items():
        said = f'{count(len(idents), "annotation")} {trouble}, ids {some(idents)}'
        if trouble == _SHORT:
            report.warning(where, f'{said}; mmdet drops their masks')
        else:
            report.error(where, said, 'Write polygons [[x1, y1, x2, y2, x3, y3, …], …] in pixels, '
                                      'or COCO\'s RLE; or leave these boxes out')  # fmt: skip


def _mask_trouble(mask: object, size: 'tuple[int, int]', is_evaluated: bool) -> 'str | None':
    """What is wrong with a "segmentation", as the end of a sentence."""
    if not mask:
        return 'have no "segmentation", and masks are needed of all'
    if isinstance(mask, dict):
        return _rle_trouble(mask, size)
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return 'have a "segmentation" that is no list of polygons (lists of numbers) and no RLE'
    if not all(is_number(value) for polygon in mask for value in polygon):
        return 'have polygons of something else than finite numbers'
    if is_evaluated and len(mask[0]) <= 4:
        return 'begin with a polygon of less than three points, which pycocotools cannot read'
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
        return _SHORT
    return None


def _rle_trouble(mask: dict, size: 'tuple[int, int]') -> 'str | None':
    """What is wrong with a run-length encoded mask; pycocotools may write beyond its memory."""
    width, height = size
    counts = mask.get('counts')
    if not isinstance(counts, (list, str)) or 'size' not in mask:
        return 'have an RLE without "size" and "counts"'
    if mask['size'] != [height, width]:
        return 'have an RLE whose "size" is not [height, width] of their image'
    runs = _decode_runs(counts) if isinstance(counts, str) else counts
    if not runs or any(type(run) is not int or run < 0 for run in runs):
        return 'have an RLE whose "counts" cannot be decoded'
    if sum(runs) > height * width:
        return 'have an RLE of more pixels than their image has'
    return None


def _decode_runs(text: str) -> 'list[int]':
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


def _files(report: Report, folder: Path, images: 'list[dict]') -> 'list[tuple[str, dict]]':
    here, lacking = [], []
    for image in images:
        is_here = os.path.isfile(folder / image['file_name'])  # not raised: a name with a 0 in it
        (here if is_here else lacking).append(image)
    if lacking:
        add = report.warning if here else report.error
        names = some([image['file_name'] for image in lacking])
        add(folder, f'{len(lacking)} of {count(len(images), "image")} are missing: {names}',
            'Check data_root and data_prefix' if not here else
            'They are skipped; copy them, or take them out of the annotations')  # fmt: skip
    return [
        (str(folder / image['file_name']),
         dict(height=image.get('height'), width=image.get('width')) if _has_size(image) else {})
        for image in here
    ]  # fmt: skip


def _has_size(image: dict) -> bool:
    return all(is_number(image.get(side)) and image[side] > 0 for side in ('width', 'height'))


def _is_id(value: object) -> bool:
    """What counts as an id: ones that are texts work as well."""
    return isinstance(value, str) or is_number(value)


def _name(ann: object, number: int) -> object:
    return ann.get('id', f'number {number}') if isinstance(ann, dict) else number


def _without(message: str, path: Path) -> str:
    return message.removeprefix(f'{path} ').removeprefix(f'{path}: ')
