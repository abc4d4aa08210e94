"""``--data DIR``: point a config at your own folder, without editing the config.

A folder in COCO 2017's or ADE20K's layout, or of images sorted by class, sets the data roots of
every loader and evaluator, the class names and the ``num_classes`` of every head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from cyclemlp_mm.datasets.coco_file import category_names
from cyclemlp_mm.datasets.file_names import files_in, read_names, say_spelling
from cyclemlp_mm.datasets.image_files import IMAGE_SUFFIXES, split_images
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.user_path import user_path

from .config_data import class_palette, data_sets, evaluators, heads, needs_masks
from .own_images import use_image_folders

COCO_SPLITS = {
    'train': ('annotations/instances_train2017.json', 'train2017/'),
    'val': ('annotations/instances_val2017.json', 'val2017/'),
}
ADE20K_SPLITS = {
    'train': ('images/training', 'annotations/training'),
    'val': ('images/validation', 'annotations/validation'),
}


def use_own_data(
    cfg: Config,
    data_dir: str | Path,
    classes: Sequence[str] | None = None,
    ignore_label: int | None = None,
    needed: Sequence[str] = ('train', 'val'),
) -> Config:
    """Point ``cfg`` at ``data_dir``.

    Args:
        cfg (Config): A config whose ``default_scope`` is mmdet (COCO 2017's layout), mmseg
            (ADE20K's layout) or mmpretrain (see :mod:`cyclemlp_mm.engine.own_images`). Changed in
            place.
        data_dir (str | Path): The folder.
        classes (Sequence[str], optional): Class names. mmdet: which of the annotation file's to
            use, by default all; mmseg: names in the order of the labels, by default the lines of
            ``classes.txt`` in the folder.
        ignore_label (int, optional): mmseg only. Labels count from 0 and this one is ignored. By
            default, as in ADE20K, labels count from 1 and 0 is ignored.
        needed (Sequence[str]): Parts that the folder must have, 'train' or 'val'; one that is not
            needed and not there leaves its loader where it was. Defaults to both.

    Returns:
        Config: ``cfg``.

    Raises:
        MissingFileError: The folder lacks a part of the layout; says which.
        UserError: Class names are missing, double, or differ between train and val.
    """
    root = user_path(data_dir).resolve()
    if not root.is_dir():
        raise MissingFileError(f'--data {data_dir}: no such folder')
    scope = cfg.get('default_scope')
    if ignore_label is not None and scope != 'mmseg':
        raise UserError('--ignore-label is for segmentation: labels of other tasks have none')
    if scope == 'mmdet':
        names = _use_coco_layout(cfg, root, classes, needed)
    elif scope == 'mmseg':
        names = _use_ade20k_layout(cfg, root, classes, ignore_label, needed)
    elif scope == 'mmpretrain':
        names = use_image_folders(cfg, root, classes, needed)
    else:
        raise UserError(
            '--data supports detection (mmdet), segmentation (mmseg) and classification '
            f'(mmpretrain) configs, but this config has default_scope={scope!r}'
        )
    for _, settings in heads(cfg.model):
        if 'num_classes' in settings:
            settings['num_classes'] = len(names)
    for node in (cfg.model, *evaluators(cfg)):
        _limit_topk(node, len(names))
    return cfg


def _use_coco_layout(
    cfg: Config, root: Path, classes: Sequence[str] | None, needed: Sequence[str]
) -> tuple[str, ...]:
    there = _splits(root, COCO_SPLITS, needed, 'COCO 2017')
    found = {
        split: category_names(root / ann_file, needs_masks(cfg, split))
        for split, (ann_file, _) in there.items()
    }
    if len(found) > 1 and sorted(found['train'].values()) != sorted(found['val'].values()):
        raise UserError(
            f'{root}: the category names of train and val differ, so labels would not mean the '
            f'same. train: {found["train"]}; val: {found["val"]}. Write the same names into both '
            'files, also those that one of them has no box of'
        )
    names = tuple(found[next(iter(found))].values())  # train's, if it is there
    if classes is not None:
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise UserError(f'--classes {unknown} are not in {root}; it has {list(names)}')
        names = tuple(name for name in names if name in set(classes))  # the file's order
    for split, dataset in data_sets(cfg):
        dataset.metainfo = dict(classes=names, palette=class_palette(len(names)))
        if split in there:
            ann_file, images = there[split]
            dataset.update(type='CheckedCocoDataset', data_root=str(root))
            dataset.update(ann_file=ann_file, data_prefix=dict(img=images))
    for evaluator in evaluators(cfg):
        if 'ann_file' in evaluator:
            evaluator.ann_file = str(root / COCO_SPLITS['val'][0])
    return names


def _use_ade20k_layout(
    cfg: Config,
    root: Path,
    classes: Sequence[str] | None,
    ignore_label: int | None,
    needed: Sequence[str],
) -> tuple[str, ...]:
    there = _splits(root, ADE20K_SPLITS, needed, 'ADE20K')
    names = _segmentation_classes(root, classes)
    if ignore_label is not None and not len(names) <= ignore_label <= 255:
        raise UserError(
            f'--ignore-label {ignore_label}: labels 0 to {len(names) - 1} are the classes '
            f'{list(names)}, so the ignored one must be {len(names)} to 255. If 0 is ignored and '
            'classes count from 1, leave --ignore-label out'
        )
    for split, dataset in data_sets(cfg):
        dataset.metainfo = dict(classes=names, palette=class_palette(len(names)))
        if split not in there:
            continue
        images, labels = there[split]
        dataset.update(
            type='BaseSegDataset',  # ADE20KDataset would map the class names to its own
            data_root=str(root),
            data_prefix=dict(img_path=images, seg_map_path=labels),
            img_suffix=_image_suffix(root / images, root / labels),
            seg_map_suffix='.png',
            reduce_zero_label=ignore_label is None,
        )
        # The config of an earlier run has the check of that run's data.
        steps = [step for step in dataset.pipeline if step['type'] != 'CheckLabels']
        at = next((i for i, step in enumerate(steps) if step['type'] == 'LoadAnnotations'), None)
        if at is not None:
            check = dict(type='CheckLabels', num_classes=len(names), ignore_label=ignore_label)
            steps.insert(at + 1, check)
        dataset.pipeline = steps
    return names


def _splits(
    root: Path, splits: dict[str, tuple[str, str]], needed: Sequence[str], layout: str
) -> dict[str, tuple[str, str]]:
    """The parts of a layout that are needed or there."""
    lacking = {
        split: [p for p in parts if not (root / p).exists()] for split, parts in splits.items()
    }
    missing = [part for split in needed for part in lacking[split]]
    if missing:
        exports = sorted(root.glob('*/_annotations.coco.json'))
        hint = ''
        if exports and layout == 'COCO 2017':
            hint = (
                f'. {exports[0].relative_to(root)} is as Roboflow exports: move it to '
                f'{COCO_SPLITS["train"][0]}, rename its folder to {COCO_SPLITS["train"][1]}, and '
                f'likewise "valid" to {", ".join(COCO_SPLITS["val"])}'
            )
        raise MissingFileError(
            f'--data {root} is not in the layout of {layout}: it lacks {", ".join(missing)}{hint}'
        )
    return {split: parts for split, parts in splits.items() if not lacking[split]}


def _segmentation_classes(root: Path, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        file = root / 'classes.txt'
        if not file.is_file():
            raise MissingFileError(
                f'{file} is missing: write one class name per line, in the order of the labels, or '
                'give --classes NAME NAME …'
            )
        classes = read_names(file)
    if len(set(classes)) != len(classes):
        raise UserError(f'class names are double: {list(classes)}')
    if len(classes) < 2:
        raise UserError(
            f'segmentation needs at least two classes (one may be "background"), but got '
            f'{list(classes)}'
        )
    return tuple(classes)


def _image_suffix(images: Path, labels: Path) -> str:
    """The one suffix of a folder's images; every image needs a label of the same stem."""
    files, _ = split_images(images.rglob('*'))
    if not files:
        raise MissingFileError(f'{images} holds no image ({", ".join(IMAGE_SUFFIXES)})')
    suffixes = sorted({f.suffix for f in files})
    if len(suffixes) > 1:
        raise UserError(
            f'{images} mixes {", ".join(suffixes)}, and mmseg reads one kind: convert or rename'
        )
    unlabelled = [
        f for f in files if not (labels / f.relative_to(images)).with_suffix('.png').exists()
    ]
    if unlabelled:
        expected = [str(f.relative_to(images).with_suffix('.png')) for f in unlabelled]
        spelling = say_spelling(expected, files_in(labels))
        raise MissingFileError(
            f'{len(unlabelled)} of {len(files)} images in {images} have no label in {labels}, e.g. '
            f'{unlabelled[0].name} (expected {unlabelled[0].stem}.png)'
            + (f'; {spelling}: rename the files' if spelling else '')
        )
    return suffixes[0]


def _limit_topk(node: object, num_classes: int) -> None:
    """Leave out top-k accuracies, here and deeper, for which there are too few classes."""
    if isinstance(node, dict) and 'topk' in node:
        asked = node['topk'] if isinstance(node['topk'], (list, tuple)) else (node['topk'],)
        node['topk'] = tuple(k for k in asked if k <= num_classes) or (1,)
    if isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            _limit_topk(value, num_classes)
