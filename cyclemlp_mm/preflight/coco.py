"""COCO annotation files: what is left out or counted otherwise than expected, with counts."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from cyclemlp_mm.datasets.coco_file import (
    CUT,
    NO_IMAGE,
    SHORT,
    UNKNOWN,
    JudgedCoco,
    has_size,
    is_crowd,
    judge_coco,
    mask_trouble,
    of_boxes,
)
from cyclemlp_mm.engine.config_data import evaluators, heads, needs_masks
from cyclemlp_mm.errors import UserError, count, some

from .files import report_missing
from .findings import Report

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
    try:
        judged = judge_coco(ann_file, masks)
    except (UserError, OSError) as error:
        what = str(error).removeprefix(f'{ann_file}').lstrip(': ')
        report.error(ann_file, what, 'Write a COCO annotation file')
        return []
    for what, fix in judged.errors:
        report.error(ann_file, what, fix)
    _check_classes(report, ann_file, judged, classes, dataset)
    _check_doubles(report, ann_file, judged)
    of_classes = [ann for ann in judged.used if judged.categories[ann['category_id']] in classes]
    good = [ann for ann in of_classes if not is_crowd(ann)]
    _check_boxes(report, ann_file, judged, good)
    if masks:
        is_evaluated = split == 'val' and any(e.get('ann_file') for e in evaluators(cfg))
        _check_masks(report, ann_file, judged, is_evaluated)
    seen = {judged.categories[ann['category_id']] for ann in good}
    empty = [name for name in classes if name not in seen] if good else []
    if empty:
        level, verb = ('warning', 'learned') if split == 'train' else ('note', 'evaluated')
        what = f'no box of {count(len(empty), "class")}: {some(empty)}; they cannot be {verb}'
        report.add(level, ann_file, what, 'Leave out what is not a class (--classes)')
    if split == 'train' and not dataset.get('test_mode'):
        with_objects = {ann['image_id'] for ann in of_classes}
        filter_cfg = dataset.get('filter_cfg') or {}
        _check_filter(report, ann_file, filter_cfg, judged.sizes, with_objects)
    if good:
        _check_number(report, ann_file, cfg, good)
        _check_areas(report, ann_file, good)
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    folder, here, missing = Path(dataset.get('data_root') or '.') / prefix, [], []
    for image in judged.images:
        path = os.path.join(folder, image['file_name'])
        if os.path.isfile(path):  # not raised: a name with a 0 in it
            size = dict(height=image['height'], width=image['width']) if has_size(image) else {}
            here.append((path, size))
        else:
            missing.append(image['file_name'])
    total = len(judged.images)
    report_missing(report, folder, folder, missing, total, allowed=total - 1)
    return here


def _check_classes(
    report: Report, where: Path, judged: JudgedCoco, classes: Sequence[str], dataset: ConfigDict
) -> None:
    names = list(judged.categories.values())
    absent = [name for name in classes if name not in names]
    if absent:
        what = f'{count(len(absent), "class name")} of the config are not in the file'
        fix = 'Give --data DIR, or set metainfo.classes'
        report.error(where, f'{what}: {some(absent)} (it has {some(names)})', fix)
        return
    boxes = Counter(judged.categories[ann['category_id']] for ann in judged.used)
    unused = [f'{n} ({count(boxes[n], "box")})' for n in names if n not in classes]
    if unused:
        report.warning(where, f'not trained, as the config does not name them: {some(unused)}')
    in_order = [name for name in names if name in classes]
    if dataset.get('type') != 'CheckedCocoDataset' and in_order != list(classes):
        what = f'{dataset.type} gives labels in the order of the file ({some(in_order)}), but'
        what += f' the config names {some(list(classes))}: names would be exchanged'
        report.error(where, what, "Take that order, or type='CheckedCocoDataset'")


def _check_doubles(report: Report, where: Path, judged: JudgedCoco) -> None:
    """Images and objects that are listed more than once."""
    files = Counter(os.path.normpath(image['file_name']) for image in judged.images)
    twice = [name for name, n in files.items() if n > 1]
    if twice:
        what = f'{count(len(twice), "image file")} are listed more than once, under several ids: '
        what += f'{some(twice)}; objects of one entry are background in the other'
        report.warning(where, what, 'Put all objects of an image under one id')
    ids = ('image_id', 'category_id')
    learned = [ann for ann in judged.used if not is_crowd(ann)]
    objects = Counter((*(ann[key] for key in ids), *ann['bbox']) for ann in learned)
    images = [key[0] for key, n in objects.items() if n > 1]
    if images:
        what = f'{count(len(images), "object")} are listed more than once (image, class and box), '
        what += f'in images {some(list(dict.fromkeys(images)))}; each has to be found'
        report.warning(where, what, 'Write each object once')


def _check_boxes(report: Report, where: Path, judged: JudgedCoco, good: list[dict]) -> None:
    """Boxes that are left out or cut, crowds, and boxes in other units."""
    annotations = judged.content['annotations']
    for trouble, these in judged.troubles.items():
        hint = _hint(trouble, [ann for _, ann in these], judged)
        report.warning(where, of_boxes(these, annotations, trouble), hint)
    for flag, other in (('iscrowd', None), ('ignore', 'iscrowd')):
        crowds = [ann for ann in judged.used if ann.get(flag) and not ann.get(other)]
        if crowds:
            trouble = f'have "{flag}" of 1: they are neither learned nor evaluated'
            what = of_boxes(list(enumerate(crowds)), annotations, trouble)
            fix = f'Write "{flag}": 0 for single objects (some tools set it for brush masks)'
            report.add(_level(len(crowds), len(annotations)), where, what, fix)
    if not annotations:
        report.error(where, 'it has no boxes: "annotations" is empty or missing', 'Write some')
    elif not good:
        what = f'none of its {count(len(annotations), "box")} can be learned or evaluated'
        report.error(where, what, 'See the other lines about this file, and the class names')
    elif all(0 <= v <= 1 for ann in good for v in ann['bbox']):
        what = 'all boxes are made of numbers from 0 to 1: parts of the image, as YOLO writes them'
        report.error(where, what, 'Write pixels: [x, y, width, height]')


def _level(part: int, of_all: int) -> str:
    """A warning for what concerns many; a note for what is usual, as in COCO itself."""
    return 'warning' if part >= 0.05 * of_all else 'note'


def _hint(trouble: str, these: list[dict], judged: JudgedCoco) -> str:
    """What probably happened to boxes with a trouble; '' where nothing fits all of them."""
    for kind, key, known in (
        (UNKNOWN, 'category_id', judged.categories),
        (NO_IMAGE, 'image_id', judged.sizes),
    ):
        if trouble == kind and {str(ann[key]) for ann in these} <= set(map(str, known)):
            return f'Their {key} is a number in one place and a text in the other: write numbers'
    boxes = [(ann['bbox'], judged.sizes[ann['image_id']]) for ann in these if trouble == CUT]
    centred = [([x - w / 2, y - h / 2, x + w / 2, y + h / 2], s) for (x, y, w, h), s in boxes]
    for kind, corners in (('x1, y1, x2, y2', boxes), ('centre x, y, width, height', centred)):
        if boxes and all(
            -1 <= x1 < x2 <= size[0] + 1 and -1 <= y1 < y2 <= size[1] + 1
            for (x1, y1, x2, y2), size in corners
        ):
            return f'All of them fit as [{kind}]: write [x1, y1, width, height]'
    return ''


def _check_masks(report: Report, where: Path, judged: JudgedCoco, is_evaluated: bool) -> None:
    """Masks that stop the training or the evaluation, that are dropped, or of something else."""
    found = defaultdict(list)
    elsewhere = 'have polygons that cover less than a quarter of their box'
    for ann in judged.used:
        mask = ann.get('segmentation')
        trouble = mask_trouble(mask, judged.sizes[ann['image_id']], is_evaluated)
        if not trouble and isinstance(mask, list) and not _cover_box(mask, ann['bbox']):
            trouble = elsewhere
        if trouble:
            found[trouble].append(ann['id'])
    for trouble, ids in found.items():
        what = f'{count(len(ids), "annotation")} {trouble}, ids {some(ids)}'
        if trouble == SHORT:
            report.warning(where, f'{what}; mmdet drops their masks')
        elif trouble == elsewhere:
            level = 'error' if len(ids) == len(judged.used) else 'warning'
            fix = 'Write polygons of the same object, in pixels (not from 0 to 1), x before y'
            report.add(level, where, what, fix)
        else:
            fix = "Write polygons [[x1, y1, x2, y2, x3, y3, …], …] in pixels, or COCO's RLE"
            report.error(where, what, fix)


def _cover_box(polygons: list, box: list) -> bool:
    """Whether the extent of an object's polygons covers a quarter of its box or more."""
    covered = 1.0
    for axis in (0, 1):
        values = [value for polygon in polygons for value in polygon[axis::2]]
        start, length = box[axis], box[axis + 2]
        common = min(start + length, max(values)) - max(start, min(values))
        covered *= max(0, common) / length
    return covered >= 0.25


def _check_filter(
    report: Report, where: Path, filter_cfg: dict, sizes: dict, with_objects: set
) -> None:
    """Images that mmdet leaves out of training."""
    least = filter_cfg.get('min_size', 0)
    small = [i for i, size in sizes.items() if min(size) < least]
    empty = sizes.keys() - with_objects if filter_cfg.get('filter_empty_gt') else ()
    of = f'of {count(len(sizes), "image")}'
    left_out = 'and are left out of training'
    key = 'train_dataloader.dataset.filter_cfg'
    if small:
        what = f'{len(small)} {of} have a side below {least} pixels {left_out} ({key}.min_size)'
        level = 'error' if len(small) == len(sizes) else 'warning'
        report.add(level, where, what, f'To train them: --cfg-options {key}.min_size=1')
    if with_objects and empty:
        what = f'{len(empty)} {of} have no object {left_out}'
        fix = f'To learn from them as background: --cfg-options {key}.filter_empty_gt=False'
        report.add(_level(len(empty), len(sizes)), where, what, fix)


def _check_number(report: Report, where: Path, cfg: Config, good: list[dict]) -> None:
    """Images with more objects than are ever predicted."""
    settings = [part for key, part in heads(cfg.model.get('test_cfg')) if 'rpn' not in key]
    limits = [p['max_per_img'] for p in settings if isinstance(p.get('max_per_img'), int)]
    most = min([_MAX_DETECTIONS, *limits])  # those of rpn are proposals
    per_image = Counter(ann['image_id'] for ann in good).values()
    more = [n for n in per_image if n > most]
    if more:
        found = sum(min(n, most) for n in per_image) / len(good)
        what = f'{count(len(more), "image")} have more than {most} objects, up to {max(more)}, but '
        what += f'at most {most} are predicted and evaluated (model.test_cfg.max_per_img; COCO: '
        what += f'{_MAX_DETECTIONS}): at best {found:.0%} of all are found'
        report.warning(where, what, 'Cut the images into tiles, or raise max_per_img')


def _check_areas(report: Report, where: Path, good: list[dict]) -> None:
    """An "area" that cannot be the object's: AP of small, medium and large objects goes by it."""
    boxes = [ann['bbox'][2] * ann['bbox'][3] for ann in good]
    pairs = zip(good, boxes)
    wrong = [a['id'] for a, box in pairs if not 0.01 * box <= a['area'] <= 1.05 * box + 1]
    same = len({ann['area'] for ann in good}) == 1 and len(set(boxes)) > 1
    if wrong or same:
        what = f'the "area" of {len(good) if same else len(wrong)} of {count(len(good), "box")} '
        what += f'does not fit width × height, ids {some(wrong)}: AP by size will be wrong'
        report.warning(where, what, 'Write the area of the mask, or width × height')
