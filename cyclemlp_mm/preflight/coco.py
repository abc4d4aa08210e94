"""COCO annotation files: what mmdet drops silently, or fails on deep inside."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cyclemlp_mm.engine.own_data import _read_categories as read_categories
from cyclemlp_mm.errors import UserError

from .findings import Report, count, some
from .json_files import read_json


def check_coco(
    report: Report, ann_file: Path, images: Path, classes: 'Sequence[str]', needs_masks: bool
) -> 'list[tuple[str, dict]]':
    """Look at one annotation file.

    Args:
        report (Report): Gets the findings.
        ann_file (Path): The file.
        images (Path): Folder of the images.
        classes (Sequence[str]): Class names of the config.
        needs_masks (bool): Whether the model learns masks.

    Returns:
        list[tuple[str, dict]]: Image files that are there, each with its ``height`` and ``width``.
    """
    try:
        categories = read_categories(ann_file, needs_masks)
        content = read_json(ann_file)
    except (UserError, OSError) as error:
        report.error(ann_file, _without(str(error), ann_file), 'Write a COCO annotation file')
        return []
    _check_classes(report, ann_file, categories, content['annotations'], classes)
    sizes = _check_images(report, ann_file, content['images'])
    _check_boxes(report, ann_file, content['annotations'], categories, sizes, classes)
    if needs_masks:
        _check_polygons(report, ann_file, content['annotations'])
    return _files(report, images, content['images'])


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
        boxes = Counter(a.get('category_id') for a in annotations if isinstance(a, dict))
        said = [f'{categories[i]} ({count(boxes[i], "box")})' for i in unused]
        report.warning(where, f'not trained, as the config does not name them: {some(said)}')


def _check_images(report: Report, where: Path, images: list) -> 'dict[object, tuple]':
    """(width, height) by image id."""
    broken = [
        i for i, image in enumerate(images)
        if not isinstance(image, dict) or not {'id', 'file_name'} <= image.keys()
    ]  # fmt: skip
    if broken:
        report.error(where, f'{count(len(broken), "image")} lack "id" or "file_name", e.g. number '
                            f'{some(broken)} in the list')  # fmt: skip
    images = [image for i, image in enumerate(images) if i not in set(broken)]
    double = [i for i, n in Counter(image['id'] for image in images).items() if n > 1]
    if double:
        report.error(where, f'{count(len(double), "image id")} are used twice: {some(double)}',
                     'Number the images anew')  # fmt: skip
    sizeless = [
        image['file_name'] for image in images
        if not (_is_number(image.get('width')) and _is_number(image.get('height'))
                and image['width'] > 0 and image['height'] > 0)
    ]  # fmt: skip
    if sizeless:
        report.error(
            where, f'{count(len(sizeless), "image")} have no "width" and "height" above 0: '
            f'{some(sizeless)}', 'Write the size of each image, in pixels',
        )  # fmt: skip
    return {
        image['id']: (image['width'], image['height'])
        for image in images if image['file_name'] not in set(sizeless)
    }  # fmt: skip


def _check_boxes(
    report: Report, where: Path, annotations: list, categories: dict, sizes: dict,
    classes: 'Sequence[str]',
) -> None:  # fmt: skip
    found: dict[str, list] = {}
    good = 0
    for number, ann in enumerate(annotations):
        trouble = _trouble(ann, categories, sizes)
        if trouble:
            ident = ann.get('id', f'number {number}') if isinstance(ann, dict) else number
            found.setdefault(trouble, []).append(ident)
        if trouble in (None, 'reach beyond the image; mmdet cuts them'):
            good += categories.get(ann['category_id']) in classes
    ids = Counter(ann.get('id') for ann in annotations if isinstance(ann, dict))
    double = [i for i, n in ids.items() if n > 1]
    if double:
        report.error(where, f'{count(len(double), "annotation id")} are used twice or are missing: '
                            f'{some(double)}', 'Number the annotations anew')  # fmt: skip
    for trouble, idents in found.items():
        add = report.error if trouble.startswith('are malformed') else report.warning
        of_all = f'{len(idents)} of {count(len(annotations), "box")}'
        add(where, f'{of_all} {trouble}, ids {some(idents)}')
    if not good:
        report.error(where, f'none of its {count(len(annotations), "box")} can be learned',
                     'See the lines above, and the class names')  # fmt: skip


def _trouble(ann: object, categories: dict, sizes: dict) -> 'str | None':
    """What is wrong with an annotation, as the end of a sentence."""
    if not isinstance(ann, dict):
        return 'are malformed (no object)'
    box = ann.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return 'are malformed: "bbox" is not four finite numbers [x, y, width, height]'
    missing = [key for key in ('image_id', 'category_id', 'area') if key not in ann]
    if missing:
        return f'are malformed: they lack {", ".join(missing)}'
    if ann['category_id'] not in categories:
        return 'have an unknown category id; mmdet drops them'
    if ann['image_id'] not in sizes:
        return 'belong to no image of the file; mmdet drops them'
    x, y, width, height = box
    if width < 1 or height < 1 or ann['area'] <= 0:
        return 'have no area (width, height or area below 1 pixel); mmdet drops them'
    image_width, image_height = sizes[ann['image_id']]
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return 'lie outside their image; mmdet drops them'
    if x < -1 or y < -1 or x + width > image_width + 1 or y + height > image_height + 1:
        return 'reach beyond the image; mmdet cuts them'
    return None


def _check_polygons(report: Report, where: Path, annotations: list) -> None:
    bad = []
    for ann in annotations:
        polygons = ann.get('segmentation') if isinstance(ann, dict) else None
        if isinstance(polygons, dict):  # run-length encoded
            continue
        if not polygons or any(len(p) < 6 or len(p) % 2 for p in polygons if isinstance(p, list)):
            bad.append(ann.get('id') if isinstance(ann, dict) else ann)
    if bad:
        report.warning(where, f'{count(len(bad), "annotation")} have no polygon of at least three '
                              f'points, ids {some(bad)}; mmdet drops their masks')  # fmt: skip


def _files(report: Report, folder: Path, images: list) -> 'list[tuple[str, dict]]':
    images = [image for image in images if isinstance(image, dict) and 'file_name' in image]
    here = [image for image in images if (folder / image['file_name']).is_file()]
    lacking = [image['file_name'] for image in images if image not in here] \
        if len(here) < len(images) else []  # fmt: skip
    if lacking:
        add = report.warning if here else report.error
        add(folder, f'{len(lacking)} of {count(len(images), "image")} are missing: {some(lacking)}',
            'Check data_root and data_prefix' if not here else
            'They are skipped; copy them, or take them out of the annotations')  # fmt: skip
    return [
        (str(folder / image['file_name']),
         dict(height=image.get('height'), width=image.get('width')))
        for image in here
    ]  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _without(message: str, path: Path) -> str:
    return message.removeprefix(f'{path} ').removeprefix(f'{path}: ')
