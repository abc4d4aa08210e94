"""COCO annotation files: what is left out or counted otherwise than expected, with counts."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from cyclemlp_mm.datasets.coco_annotations import (
    CUT,
    LEFT_OUT,
    MALFORMED,
    NO_IMAGE,
    SHORT,
    UNKNOWN,
    box_trouble,
    has_size,
    image_sizes,
    is_crowd,
    is_id,
    mask_trouble,
    unsortable,
)
from cyclemlp_mm.datasets.coco_file import category_names, read_coco
from cyclemlp_mm.engine.config_data import evaluators, needs_masks
from cyclemlp_mm.errors import UserError

from .files import report_missing
from .findings import Report, count, some

#: COCO's average precision counts so many detections of an image at most.
_MAX_DETECTIONS = 100


def check_coco(
    report: Report,
    cfg: Config,
    split: str,
    dataset: ConfigDict,
    classes: Sequence[str],
    ann_file: Path,
) -> list[tuple[str, dict]]:
    """Look at one annotation file; returns the image files, each with its height and width."""
    masks = needs_masks(cfg, split)
    is_evaluated = split == 'val' and any(e.get('ann_file') for e in evaluators(cfg))
    try:
        categories = category_names(ann_file, masks)
        content = read_coco(ann_file)
    except (UserError, OSError) as error:
        report.error(ann_file, _without(str(error), ann_file), 'Write a COCO annotation file')
        return []
    annotations = content['annotations']
    _check_classes(report, ann_file, categories, annotations, classes, dataset)
    named = _check_images(report, ann_file, content['images'])
    sizes = image_sizes(named)
    for ids, what in ((sizes, 'images'), (categories, 'categories')):
        if unsortable(ids):
            report.error(
                ann_file,
                f'the ids of its {what} mix numbers and texts, or numbers too large: '
                f'{some(list(ids))}; the evaluation would lose some',
                'Number them from 1',
            )
    troubles = [box_trouble(ann, categories, sizes) for ann in annotations]
    used = _check_boxes(report, ann_file, annotations, troubles, categories, classes, sizes)
    good = [ann for ann in used if not is_crowd(ann)]
    if masks:
        masked = [ann for ann, t in zip(annotations, troubles) if _is_read(t)]
        _check_masks(report, ann_file, masked, sizes, is_evaluated)
    seen = {categories[ann['category_id']] for ann in good}
    empty = [name for name in classes if name not in seen] if good else []
    if empty:
        add = report.warning if split == 'train' else report.note
        add(
            ann_file,
            f'no box of {count(len(empty), "class")}: {some(empty)}; they cannot be '
            + ('learned' if split == 'train' else 'evaluated'),
            'Leave out what is no class (--classes), e.g. one that only groups the others',
        )
    if split == 'train' and not dataset.get('test_mode'):
        _check_filter(report, ann_file, dataset.get('filter_cfg') or {}, sizes, used)
    _check_number(report, ann_file, cfg, good)
    _check_areas(report, ann_file, good)
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    return _files(report, Path(dataset.get('data_root') or '.') / prefix, named)


def _check_classes(
    report: Report,
    where: Path,
    categories: dict,
    annotations: list,
    classes: Sequence[str],
    dataset: ConfigDict,
) -> None:
    names = list(categories.values())
    absent = [name for name in classes if name not in names]
    if absent:
        report.error(
            where,
            f'{count(len(absent), "class name")} of the config are not in the file: {some(absent)} '
            f'(it has {some(names)}), so mmdet would drop their boxes silently',
            'Give --data DIR, which takes the names from the file, or set metainfo.classes',
        )
        return
    unused = [i for i, name in categories.items() if name not in classes]
    if unused:
        ids = (a.get('category_id') for a in annotations if isinstance(a, dict))
        boxes = Counter(i for i in ids if is_id(i))
        said = [f'{categories[i]} ({count(boxes[i], "box")})' for i in unused]
        report.warning(where, f'not trained, as the config does not name them: {some(said)}')
    in_order = [name for name in names if name in classes]
    if dataset.get('type') != 'CheckedCocoDataset' and in_order != list(classes):
        report.error(
            where,
            f'{dataset.type} gives labels in the order of the file ({some(in_order)}), but the '
            f'config names the classes as {some(list(classes))}: names would be exchanged',
            "Take that order for metainfo.classes, or type='CheckedCocoDataset'",
        )


def _check_images(report: Report, where: Path, images: list) -> list[dict]:
    """Report images without id, name or size, or listed twice; returns those with id and name."""
    images = [image if isinstance(image, dict) else {} for image in images]
    has_id = [is_id(image.get('id')) for image in images]
    has_name = [isinstance(image.get('file_name'), str) for image in images]
    for what, is_right in (
        ('lack "id" (a number or a text)', has_id),
        ('lack "file_name" (a text; LVIS\'s is the end of coco_url)', has_name),
        ('have no "width" and "height" above 0', map(has_size, images)),
    ):
        wrong = [i for i, right in enumerate(is_right) if not right]
        if wrong:
            report.error(
                where,
                f'{count(len(wrong), "image")} {what}, e.g. number {some(wrong)} in the list',
                'Write "id", "file_name", "width" and "height" of each image',
            )
    named = [image for image, *right in zip(images, has_id, has_name) if all(right)]
    double = [i for i, n in Counter(image['id'] for image in named).items() if n > 1]
    if double:
        report.error(
            where,
            f'{count(len(double), "image id")} are used twice: {some(double)}',
            'Number the images again',
        )
    files = Counter(os.path.normpath(image['file_name']) for image in named)
    twice = [name for name, n in files.items() if n > 1]
    if twice:
        report.warning(
            where,
            f'{count(len(twice), "image file")} are listed more than once, under several ids: '
            f'{some(twice)}; the objects of one entry are background in the other, in training '
            'as in the evaluation, where finding them counts as wrong',
            'Put all objects of an image under one id',
        )
    return named


def _check_boxes(
    report: Report,
    where: Path,
    annotations: list,
    troubles: list[str | None],
    categories: dict,
    classes: Sequence[str],
    sizes: dict,
) -> list[dict]:
    """Report boxes that are not used; returns the others of the config's classes, with crowds."""
    found, crowds, used = defaultdict(list), defaultdict(list), []
    for number, (ann, trouble) in enumerate(zip(annotations, troubles)):
        if trouble:
            found[trouble].append((number, ann))
        if not _is_read(trouble):
            continue
        if is_crowd(ann):
            crowds['iscrowd' if ann.get('iscrowd') else 'ignore'].append((number, ann))
        if categories[ann['category_id']] in classes:
            used.append(ann)
    good = [ann for ann in used if not is_crowd(ann)]
    objects = Counter((ann['image_id'], ann['category_id'], *ann['bbox']) for ann in good)
    double = [key[0] for key, n in objects.items() if n > 1]
    if double:
        images = some(list(dict.fromkeys(double)))
        report.warning(
            where,
            f'{count(len(double), "object")} are listed more than once (same image, class and '
            f'box), in images {images}: the evaluation expects each entry to be found',
            'Write each object once',
        )
    of_all = f'of {count(len(annotations), "box")}'
    for trouble, these in found.items():
        add = report.error if trouble.startswith(MALFORMED) else report.warning
        add(
            where,
            f'{len(these)} {of_all} {trouble}, ids {_ids(these)}',
            _hint(trouble, [ann for _, ann in these], categories, sizes),
        )
    for flag, these in crowds.items():
        _by_share(report, len(these), len(annotations))(
            where,
            f'{len(these)} {of_all} have "{flag}" of 1: they are neither learned nor searched for '
            f'in the evaluation, ids {_ids(these)}',
            f'Write "{flag}": 0 where it is one object (annotation tools set it for masks drawn '
            'with a brush)',
        )
    if not annotations:
        report.error(where, 'it has no boxes: "annotations" is empty or missing', 'Write some')
    elif not good:
        report.error(
            where,
            f'none of its {count(len(annotations), "box")} can be learned or evaluated (those of '
            'crowds, with "iscrowd" or "ignore" of 1, are not)',
            'See the lines above, and the class names',
        )
    elif all(0 <= v <= 1 for ann in good for v in ann['bbox']):
        report.error(
            where,
            'all boxes are made of numbers from 0 to 1: parts of the image, as YOLO writes them',
            'Write pixels: [x, y, width, height]',
        )
    return used


def _by_share(report: Report, part: int, of_all: int) -> Callable[..., None]:
    """A warning for what concerns many; a note for what is usual, as in COCO itself."""
    return report.warning if part >= 0.05 * of_all else report.note


def _is_read(trouble: str | None) -> bool:
    """Whether an annotation reaches training or evaluation in spite of its trouble."""
    return not trouble or (trouble not in LEFT_OUT and not trouble.startswith(MALFORMED))


def _ids(these: list[tuple[int, object]]) -> str:
    return some(
        [
            ann.get('id', f'number {number}') if isinstance(ann, dict) else number
            for number, ann in these
        ]
    )


def _hint(trouble: str, these: list, categories: dict, sizes: dict) -> str:
    """What probably happened to boxes with a trouble; '' where nothing fits them."""
    if trouble.startswith(MALFORMED):
        return 'Correct these annotations, or take them out of the file'
    if trouble in (UNKNOWN, NO_IMAGE):
        key, known = ('category_id', categories) if trouble == UNKNOWN else ('image_id', sizes)
        texts = set(map(str, known))
        if all(str(ann[key]) in texts for ann in these):
            return f'Their {key} is a number in one place and a text in the other: write numbers'
    for kind, fit in (
        ('[x1, y1, x2, y2]', _fit_as_corners),
        ('[x, y of the centre, width, height]', _fit_as_centres),
    ):
        if trouble == CUT and all(fit(ann['bbox'], sizes[ann['image_id']]) for ann in these):
            return (
                f"All of them fit as {kind}: COCO's boxes are [x, y of the corner at the top left, "
                'width, height]'
            )
    return ''


def _fit_as_corners(box: list, size: tuple) -> bool:
    x1, y1, x2, y2 = box
    return -1 <= x1 < x2 <= size[0] + 1 and -1 <= y1 < y2 <= size[1] + 1


def _fit_as_centres(box: list, size: tuple) -> bool:
    x, y, width, height = box
    return _fit_as_corners([x - width / 2, y - height / 2, x + width / 2, y + height / 2], size)


def _check_masks(
    report: Report, where: Path, annotations: list[dict], sizes: dict, is_evaluated: bool
) -> None:
    """Masks that stop the training or the evaluation, that are dropped, or of something else."""
    found, elsewhere = defaultdict(list), []
    for ann in annotations:
        trouble = mask_trouble(ann.get('segmentation'), sizes[ann['image_id']], is_evaluated)
        if trouble:
            found[trouble].append(ann['id'])
        elif isinstance(ann['segmentation'], list) and not _cover_box(ann):
            elsewhere.append(ann['id'])
    if elsewhere:
        add = report.error if len(elsewhere) == len(annotations) else report.warning
        add(
            where,
            f'{count(len(elsewhere), "annotation")} have polygons that cover less than a quarter '
            f'of their box, ids {some(elsewhere)}',
            'Write polygons of the same object as the box, in pixels (not from 0 to 1): x before y',
        )
    for trouble, idents in found.items():
        said = f'{count(len(idents), "annotation")} {trouble}, ids {some(idents)}'
        if trouble == SHORT:
            report.warning(where, f'{said}; mmdet drops their masks')
        else:
            report.error(
                where,
                said,
                "Write polygons [[x1, y1, x2, y2, x3, y3, …], …] in pixels, or COCO's RLE; or "
                'leave these boxes out',
            )


def _cover_box(ann: dict) -> bool:
    """Whether the extent of an object's polygons covers a quarter of its box or more."""
    x, y, width, height = ann['bbox']
    across = [polygon[::2] for polygon in ann['segmentation']]
    down = [polygon[1::2] for polygon in ann['segmentation']]
    common = [
        max(0, min(start + length, max(map(max, values))) - max(start, min(map(min, values))))
        for start, length, values in ((x, width, across), (y, height, down))
    ]
    return common[0] * common[1] >= 0.25 * width * height


def _check_filter(
    report: Report, where: Path, filter_cfg: dict, sizes: dict, used: list[dict]
) -> None:
    """Images that mmdet leaves out of training."""
    least = filter_cfg.get('min_size', 0)
    small = [i for i, size in sizes.items() if min(size) < least]
    key = 'train_dataloader.dataset.filter_cfg'
    if small:
        add = report.error if len(small) == len(sizes) else report.warning
        add(
            where,
            f'{len(small)} of {count(len(sizes), "image")} have a side below {least} pixels and '
            f'are left out of training ({key}.min_size={least})',
            f'To train them, give --cfg-options {key}.min_size=1',
        )
    empty = sizes.keys() - {ann['image_id'] for ann in used}
    if used and empty and filter_cfg.get('filter_empty_gt'):
        _by_share(report, len(empty), len(sizes))(
            where,
            f'{len(empty)} of {count(len(sizes), "image")} have no object and are left out of '
            f'training ({key}.filter_empty_gt=True)',
            f'To learn from them as background, give --cfg-options {key}.filter_empty_gt=False',
        )


def _check_number(report: Report, where: Path, cfg: Config, good: list[dict]) -> None:
    """Images with more objects than are ever predicted."""
    most = min([_MAX_DETECTIONS, *_values(cfg.model.get('test_cfg'), 'max_per_img')])
    per_image = Counter(ann['image_id'] for ann in good)
    more = [n for n in per_image.values() if n > most]
    if more:
        found = sum(min(n, most) for n in per_image.values()) / len(good)
        report.warning(
            where,
            f'{count(len(more), "image")} have more than {most} objects, up to {max(more)}, but at '
            f'most {most} are predicted and evaluated per image (model.test_cfg.max_per_img; '
            f"COCO's AP counts {_MAX_DETECTIONS}): at best {found:.0%} of all objects are found",
            'Cut the images into tiles, or raise max_per_img to predict more',
        )


def _values(node: object, key: str) -> Iterator[int]:
    """Numbers under a key, however deep, but of proposals: those of ``rpn`` are no detections."""
    for name, value in node.items() if isinstance(node, dict) else ():
        if name == key and isinstance(value, int):
            yield value
        elif name != 'rpn':
            yield from _values(value, key)


def _check_areas(report: Report, where: Path, good: list[dict]) -> None:
    """An "area" that cannot be the object's: AP of small, medium and large objects goes by it."""
    boxes = [ann['bbox'][2] * ann['bbox'][3] for ann in good]
    wrong = [
        ann['id']
        for ann, box in zip(good, boxes)
        if not 0.01 * box <= ann['area'] <= 1.05 * box + 1
    ]
    same = len({ann['area'] for ann in good}) == 1 and len(set(boxes)) > 1
    if wrong or same:
        report.warning(
            where,
            f'the "area" of {len(good) if same else len(wrong)} of {count(len(good), "box")} does '
            f'not belong to their width and height, ids {some(wrong)}: AP of small, medium and '
            'large objects sorts by it and would be wrong; the other figures are not affected',
            'Write the area of the mask, or width × height',
        )


def _files(report: Report, folder: Path, images: list[dict]) -> list[tuple[str, dict]]:
    here, missing = [], []
    for image in images:
        path = os.path.join(folder, image['file_name'])
        if os.path.isfile(path):  # not raised: a name with a 0 in it
            size = dict(height=image['height'], width=image['width']) if has_size(image) else {}
            here.append((path, size))
        else:
            missing.append(image['file_name'])
    report_missing(report, folder, folder, missing, len(images), allowed=len(images) - 1)
    return here


def _without(message: str, path: Path) -> str:
    return message.removeprefix(f'{path} ').removeprefix(f'{path}: ')
