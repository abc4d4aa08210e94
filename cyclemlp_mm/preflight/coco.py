"""COCO annotation files: what is left out or counted otherwise than expected, with counts."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from cyclemlp_mm.datasets import coco_file as coco
from cyclemlp_mm.engine.config_data import evaluators, heads, needs_masks
from cyclemlp_mm.errors import UserError, count, some

from .files import those_there
from .findings import Report

#: COCO's average precision counts so many detections of an image at most.
_MAX_DETECTIONS = 100
_ELSEWHERE = 'have polygons that cover less than a quarter of their box'


def check_coco(
    report: Report, cfg: Config, split: str, dataset: ConfigDict, classes: Sequence[str]
) -> list[dict]:
    """Look at an annotation file; returns path, height and width of the images that are there."""
    root = Path(dataset.get('data_root') or '.')
    ann_file = root / dataset.ann_file
    masks = needs_masks(cfg, split)
    try:
        judged = coco.judge_coco(ann_file, masks)
    except (UserError, OSError) as error:
        what = str(error).removeprefix(f'{ann_file}').lstrip(': ')
        fix = 'Write a COCO annotation file, or give --data DIR in the layout of COCO 2017'
        report.error(ann_file, what, fix)
        return []
    for what, fix in judged.errors:
        report.error(ann_file, what, fix)
    _check_classes(report, ann_file, judged, classes, dataset)
    _check_doubles(report, ann_file, judged)
    of_classes = [ann for ann in judged.used if judged.categories[ann['category_id']] in classes]
    good = [ann for ann in of_classes if not coco.is_crowd(ann)]
    _check_boxes(report, ann_file, judged, good)
    if masks:
        is_evaluated = split == 'val' and any(e.get('ann_file') for e in evaluators(cfg))
        _check_masks(report, ann_file, judged, is_evaluated)
    if split == 'train' and not dataset.get('test_mode'):
        with_objects = {ann['image_id'] for ann in of_classes}
        filter_cfg = dataset.get('filter_cfg') or {}
        _check_filter(report, ann_file, cfg, filter_cfg, judged.sizes, with_objects)
    if good:
        seen = {judged.categories[ann['category_id']] for ann in good}
        if empty := [name for name in classes if name not in seen]:
            level, verb = ('warning', 'learned') if split == 'train' else ('note', 'evaluated')
            what = f'no box of {count(len(empty), "class")}: {some(empty)}; they cannot be {verb}'
            report.add(level, ann_file, what, 'Leave out what is not a class (--classes)')
        _check_evaluated(report, ann_file, cfg, good)
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    folder = root / prefix
    infos = [
        dict(img_path=os.path.join(folder, image['file_name']))
        | {side: image[side] for side in ('height', 'width') if coco.has_size(image)}
        for image in judged.images
    ]
    return those_there(report, infos, 'img_path', len(infos), folder)


def _check_classes(
    report: Report,
    where: Path,
    judged: coco.JudgedCoco,
    classes: Sequence[str],
    dataset: ConfigDict,
) -> None:
    names = list(judged.categories.values())
    absent = [name for name in classes if name not in names]
    if absent:
        what = f'{count(len(absent), "class name")} of the config are not in the file'
        what += f': {some(absent)} (it has {some(names)})'
        report.error(where, what, 'Give --data DIR, or set metainfo.classes')
        return
    boxes = Counter(judged.categories[ann['category_id']] for ann in judged.used)
    unused = [f'{n} ({count(boxes[n], "box")})' for n in names if n not in classes]
    if unused:
        report.warning(where, f'not trained, as the config does not name them: {some(unused)}')
    in_order = [name for name in names if name in classes]
    if dataset.get('type') != 'CheckedCocoDataset' and in_order != list(classes):
        what = f'{dataset.type} gives labels in the order of the file ({some(in_order)}), not of '
        what += f'the config ({some(list(classes))}): names would be exchanged'
        report.error(where, what, "Take that order, or type='CheckedCocoDataset'")


def _check_doubles(report: Report, where: Path, judged: coco.JudgedCoco) -> None:
    """Images and objects that are listed more than once."""
    files = Counter(os.path.normpath(image['file_name']) for image in judged.images)
    twice = [name for name, n in files.items() if n > 1]
    if twice:
        what = f'{count(len(twice), "image file")} are listed more than once: {some(twice)}; '
        what += 'objects of one entry are background in the other'
        report.warning(where, what, 'Put all objects of an image under one id')
    learned = [ann for ann in judged.used if not coco.is_crowd(ann)]
    objects = Counter((ann['image_id'], ann['category_id'], *ann['bbox']) for ann in learned)
    images = [key[0] for key, n in objects.items() if n > 1]
    if images:
        what = f'{count(len(images), "object")} are listed more than once, in images '
        what += some(list(dict.fromkeys(images)))
        report.warning(where, what, 'Write each object once')


def _check_boxes(report: Report, where: Path, judged: coco.JudgedCoco, good: list[dict]) -> None:
    """Boxes that are left out or cut, crowds, and boxes in other units."""
    annotations = judged.content['annotations']
    for trouble, these in judged.troubles.items():
        hint = _hint(trouble, [ann for _, ann in these], judged)
        report.warning(where, coco.of_boxes(these, annotations, trouble), hint)
    for flag, other in (('iscrowd', None), ('ignore', 'iscrowd')):
        crowds = [ann for ann in judged.used if ann.get(flag) and not ann.get(other)]
        if crowds:
            trouble = f'have "{flag}" of 1: they are neither learned nor evaluated'
            what = coco.of_boxes(list(enumerate(crowds)), annotations, trouble)
            fix = f'Write "{flag}": 0 for single objects (some tools set it for brush masks)'
            report.add(_level(len(crowds), len(annotations)), where, what, fix)
    if not annotations:
        report.error(where, 'it has no boxes: "annotations" is empty or missing', 'Add some')
    elif not good:
        what = f'none of its {count(len(annotations), "box")} can be learned or evaluated'
        report.error(where, what, 'See the other lines about this file, and the class names')
    elif all(0 <= v <= 1 for ann in good for v in ann['bbox']):
        what = 'all boxes are made of numbers from 0 to 1: parts of the image, as YOLO writes them'
        report.error(where, what, 'Write pixels: [x, y, width, height]')


def _level(part: int, of_all: int) -> str:
    """A warning for what concerns many; a note for what is usual, as in COCO itself."""
    return 'warning' if part >= 0.05 * of_all else 'note'


def _hint(trouble: str, these: list[dict], judged: coco.JudgedCoco) -> str:
    """What probably happened to boxes with a trouble; '' where nothing fits all of them."""
    ids = (
        (coco.UNKNOWN, 'category_id', judged.categories),
        (coco.NO_IMAGE, 'image_id', judged.sizes),
    )
    for kind, key, known in ids:
        if trouble == kind and {str(ann[key]) for ann in these} <= set(map(str, known)):
            return f'Their {key} is a number in one place and a text in the other: write numbers'
    boxes = [(ann['bbox'], judged.sizes[ann['image_id']]) for ann in these if trouble == coco.CUT]
    centred = [([x - w / 2, y - h / 2, x + w / 2, y + h / 2], s) for (x, y, w, h), s in boxes]
    for kind, corners in (('x1, y1, x2, y2', boxes), ('centre x, y, width, height', centred)):
        if boxes and all(
            -1 <= x1 < x2 <= size[0] + 1 and -1 <= y1 < y2 <= size[1] + 1
            for (x1, y1, x2, y2), size in corners
        ):
            return f'All of them fit as [{kind}]: write [x1, y1, width, height]'
    return ''


def _check_masks(report: Report, where: Path, judged: coco.JudgedCoco, is_evaluated: bool) -> None:
    """Masks that stop the training or the evaluation, that are dropped, or of something else."""
    found = defaultdict(list)
    for ann in judged.used:
        mask = ann.get('segmentation')
        trouble = coco.mask_trouble(mask, judged.sizes[ann['image_id']], is_evaluated)
        if not trouble and isinstance(mask, list) and not _cover_box(mask, ann['bbox']):
            trouble = _ELSEWHERE
        if trouble:
            found[trouble].append(ann['id'])
    fix = 'Write polygons [[x1, y1, x2, y2, x3, y3, …], …] of the object in pixels, or RLE'
    for trouble, ids in found.items():
        some_only = trouble == _ELSEWHERE and len(ids) < len(judged.used)
        what = f'{count(len(ids), "annotation")} {trouble}, ids {some(ids)}'
        what += '; mmdet drops their masks' * (trouble == coco.SHORT)
        report.add('warning' if some_only or trouble == coco.SHORT else 'error', where, what, fix)


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
    report: Report, where: Path, cfg: Config, filter_cfg: dict, sizes: dict, with_objects: set
) -> None:
    """Images that mmdet leaves out of training."""
    key, dataset = 'train_dataloader.dataset', cfg.train_dataloader.dataset
    while 'dataset' in dataset:  # of one that repeats images, and the like
        key, dataset = f'{key}.dataset', dataset['dataset']
    key = f'--cfg-options {key}.filter_cfg' if 'datasets' not in dataset else 'its filter_cfg'
    least = filter_cfg.get('min_size', 0)
    small = [i for i, size in sizes.items() if min(size) < least]
    empty = sizes.keys() - with_objects if filter_cfg.get('filter_empty_gt') else ()
    of = f'of {count(len(sizes), "image")}'
    if small:
        what = f'{len(small)} {of} have a side below {least} pixels and are left out of training'
        level = 'error' if len(small) == len(sizes) else 'warning'
        report.add(level, where, what, f'To train them: {key}.min_size=1')
    if with_objects and empty:
        what = f'{len(empty)} {of} have no object and are left out of training'
        fix = f'To learn from them as background: {key}.filter_empty_gt=False'
        report.add(_level(len(empty), len(sizes)), where, what, fix)


def _check_evaluated(report: Report, where: Path, cfg: Config, good: list[dict]) -> None:
    """More objects in an image than are ever predicted, and an "area" that cannot be the object's.

    By the area, the evaluation tells small, medium and large objects apart.
    """
    settings = [part for key, part in heads(cfg.model.get('test_cfg')) if 'rpn' not in key]
    limits = [p['max_per_img'] for p in settings if isinstance(p.get('max_per_img'), int)]
    most = min([_MAX_DETECTIONS, *limits])  # those of rpn are proposals
    per_image = Counter(ann['image_id'] for ann in good).values()
    more = [n for n in per_image if n > most]
    if more:
        found = sum(min(n, most) for n in per_image) / len(good)
        what = f'{count(len(more), "image")} have more than {most} objects, up to {max(more)}, but '
        what += f'no more are predicted and evaluated: at best {found:.0%} of all are found'
        fix = 'Cut the images into tiles, or raise model.test_cfg.max_per_img (COCO counts 100)'
        report.warning(where, what, fix)
    boxes = [ann['bbox'][2] * ann['bbox'][3] for ann in good]
    pairs = zip(good, boxes)
    wrong = [a['id'] for a, box in pairs if not 0.01 * box <= a['area'] <= 1.05 * box + 1]
    same = len({ann['area'] for ann in good}) == 1 and len(set(boxes)) > 1
    if wrong or same:
        what = f'the "area" of {len(good) if same else len(wrong)} of {count(len(good), "box")} '
        what += f'does not fit width × height, ids {some(wrong)}: AP by size will be wrong'
        report.warning(where, what, 'Write the area of the mask, or width × height')
