"""``--data DIR``: point a config at your own folder, without editing the config.

It sets the data roots of every loader and evaluator, the class names and the ``num_classes`` of
every head. The layouts are in docs/own_data.md and docs/classification.md.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from mmengine.config import Config
from mmengine.logging import print_log

from cyclemlp_mm.datasets.coco_file import annotations_kept, category_names, read_coco
from cyclemlp_mm.datasets.file_names import read_lines, read_names, say_spelling
from cyclemlp_mm.datasets.image_files import IMAGE_SUFFIXES, split_images
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.user_path import user_path

from .config_data import class_palette, data_sets, evaluators, heads, needs_masks
from .layouts import ADE20K, CAMVID, COCO, TASKS, find_coco, recognise

#: Parts of a layout, relative to the folder, by split.
Splits: TypeAlias = dict[str, tuple[str, ...]]
FOLDERS: Splits = {'train': ('train/',), 'val': ('val/',)}
#: Where a split's list of ``NAME LABEL`` lines may lie, under the folder.
LIST_NAMES = ('{}_list.txt', '{}.txt', 'meta/{}.txt')


@annotations_kept()
def use_own_data(
    cfg: Config,
    data_dir: str | Path,
    classes: Sequence[str] | None = None,
    ignore_label: int | None = None,
    needed: Sequence[str] = ('train', 'val'),
) -> Config:
    """Point ``cfg`` at ``data_dir``, and return it.

    Args:
        cfg (Config): A config whose ``default_scope`` is mmdet (COCO's layout), mmseg
            (ADE20K's layout) or mmpretrain. Changed in place.
        data_dir (str | Path): The folder.
        classes (Sequence[str], optional): Class names. mmdet: which of the annotation file's to
            use, by default all; else names in the order of the labels, by default the lines of
            ``classes.txt`` in the folder. Not for class folders.
        ignore_label (int, optional): mmseg only. Labels count from 0 and this one is ignored. By
            default, as in ADE20K, labels count from 1 and 0 is ignored.
        needed (Sequence[str]): Parts that the folder must have, 'train' or 'val'; one that is not
            needed and not there leaves its loader where it was. Defaults to both.

    Raises:
        MissingFileError: The folder lacks a part of the layout; says which.
        UserError: Class names are missing, double, or differ between train and val; the folder
            has the layout of another task, or one that has to be converted (with the command).
    """
    root = user_path(data_dir).resolve()
    if not root.is_dir():
        raise MissingFileError(f'--data {data_dir}: no such folder')
    scope = cfg.get('default_scope')
    if ignore_label is not None and scope != 'mmseg':
        raise UserError('--ignore-label is for segmentation: labels of other tasks have none')
    if scope not in TASKS:
        raise UserError(f'--data needs a config of mmdet, mmseg or mmpretrain, not of {scope!r}')
    _check_layout(root, scope)
    if scope == 'mmdet':
        there = _splits(root, COCO | find_coco(root), needed, 'COCO')
        names = _coco_classes(cfg, root, there, classes)
        settings = {
            split: dict(type='CheckedCocoDataset', ann_file=file, data_prefix=dict(img=images))
            for split, (file, images) in there.items()
        }
        for evaluator in evaluators(cfg):
            if 'ann_file' in evaluator:
                evaluator.ann_file = str(root / there.get('val', COCO['val'])[0])
    elif scope == 'mmseg':
        is_camvid = (root / CAMVID['val'][1]).is_dir()
        there = _splits(root, CAMVID if is_camvid else ADE20K, needed, 'ADE20K')
        if is_camvid and ignore_label is None:
            names, ignore_label = _camvid_classes(root)
            classes = names if classes is None else classes
        names = _segmentation_classes(root, classes, ignore_label)
        check = dict(type='CheckLabels', num_classes=len(names), ignore_label=ignore_label)
        settings = {
            split: dict(
                type='BaseSegDataset',  # ADE20KDataset would map the class names to its own
                data_prefix=dict(img_path=images, seg_map_path=labels),
                img_suffix=_image_suffix(root / images),
                seg_map_suffix='.png',
                reduce_zero_label=ignore_label is None,
            )
            for split, (images, labels) in there.items()
        }
    else:
        there = _splits(root, FOLDERS, needed, 'train/CLASS/IMAGE or of lists')
        lists = {split: _find_list(root, split) for split in there}
        if any(lists.values()):
            names = _classes_of_lists(root, lists, classes)
        elif classes is None:
            names = _classes_of_folders({split: root / split for split in there})
        else:
            raise UserError(f'--classes: {root} has class folders with the names; leave it out')
        shared = dict(type='CustomDataset', with_label=True, extensions=IMAGE_SUFFIXES)
        settings = {
            split: dict(shared, ann_file=name, data_prefix=_prefix_of(root, split, name))
            for split, name in lists.items()
        }
    for split, dataset in data_sets(cfg):
        dataset.metainfo = dict(classes=names, palette=class_palette(len(names)))
        if split in settings:
            for key in ('split', 'classes'):  # of mmpretrain's ImageNet
                dataset.pop(key, None)
            dataset.update(settings[split], data_root=str(root))
            if scope == 'mmseg':
                dataset.pipeline = _with_check(dataset.pipeline, check)
    if scope == 'mmseg' and cfg.get('tta_pipeline'):
        cfg.tta_pipeline = _with_check(cfg.tta_pipeline, check)
    for node in (cfg.model, *evaluators(cfg)):
        for _, settings in heads(node):
            if 'num_classes' in settings:
                settings['num_classes'] = len(names)
            if 'topk' in settings:
                topk = settings['topk']
                topk = topk if isinstance(topk, (list, tuple)) else (topk,)
                settings['topk'] = tuple(k for k in topk if k <= len(names)) or (1,)
    return cfg


def _check_layout(root: Path, scope: str) -> None:
    """Raise a UserError for a layout of another task, or one that has to be converted."""
    name, task, command, result = recognise(root, scope)
    if task == scope and not command:
        return
    what = f'--data {root} is in the layout of {name}'
    if task != scope:
        what += f', for {TASKS[task][0]}, but the config is for {TASKS[scope][0]}: take a config '
        what += f'such as {TASKS[task][1]}'
    if command:
        what += f'. This command converts it:\n\n{command}\n\n'
        what += f'Then give --data {shlex.quote(str(result))}'
    raise UserError(what)


def _splits(root: Path, splits: Splits, needed: Sequence[str], layout: str) -> Splits:
    """The parts of a layout that are needed or there."""
    lacking = {
        split: [part for part in parts if not os.path.exists(f'{root}/{part}')]
        for split, parts in splits.items()
    }
    missing = ', '.join(part for split in needed for part in lacking[split])
    if missing:
        raise MissingFileError(
            f'--data {root} is not in the layout of {layout}: it lacks {missing}'
        )
    return {split: parts for split, parts in splits.items() if not lacking[split]}


def _coco_classes(
    cfg: Config, root: Path, splits: Splits, classes: Sequence[str] | None
) -> tuple[str, ...]:
    found = {
        split: list(category_names(root / file, needs_masks(cfg, split)).values())
        for split, (file, _) in splits.items()
    }
    if len(found) > 1 and sorted(found['train']) != sorted(found['val']):
        only = [[n for n in found[a] if n not in found[b]] for a, b in (COCO, [*COCO][::-1])]
        files = ' and '.join(str(root / splits[split][0]) for split in COCO)
        raise UserError(
            f'the category names of train and val differ ({files}); only in train: {only[0]}, only '
            f'in val: {only[1]}. Write the same categories into both files, with objects or not'
        )
    names = next(iter(found.values()))  # train's, if it is there
    roots = _unused_parents(root, splits)
    if roots and classes is None:
        what = 'no objects and only group other categories, as in exports of Roboflow'
        print_log(f'{root}: {roots} have {what}: they are left out of the classes', 'current')
        names = [name for name in names if name not in roots]
    unknown = [name for name in classes or () if name not in names]
    if unknown:
        raise UserError(f'--classes {unknown} are not in {root}; it has {names}')
    return tuple(name for name in names if classes is None or name in classes)  # the file's order


def _unused_parents(root: Path, splits: Splits) -> list[str]:
    """Categories that are the supercategory of another one, and have no objects in any split."""
    parents, used = set(), set()
    for file, _ in splits.values():
        content = read_coco(root / file)
        names = {one['id']: one['name'] for one in content['categories']}
        pairs = ((one['name'], one.get('supercategory')) for one in content['categories'])
        parents |= {parent for name, parent in pairs if parent != name} & {*names.values()}
        objects = [ann for ann in content['annotations'] if isinstance(ann, dict)]
        used |= {names.get(ann.get('category_id')) for ann in objects}
    return sorted(parents - used)


def _segmentation_classes(
    root: Path, classes: Sequence[str] | None, ignore_label: int | None
) -> tuple[str, ...]:
    file = root / 'classes.txt'
    if classes is None and not file.is_file():
        raise MissingFileError(
            f'{file} is missing: write one class name per line, in the order of the labels, or '
            'give --classes NAME NAME …'
        )
    names = tuple(read_names(file) if classes is None else classes)
    _check_doubles(names)
    if len(names) < 2:
        raise UserError(f'segmentation needs at least two classes, but got {list(names)}')
    if ignore_label is not None and not len(names) <= ignore_label <= 255:
        raise UserError(
            f'--ignore-label {ignore_label} must be {len(names)} to 255: 0 to {len(names) - 1} are '
            f'the classes {list(names)}. If 0 is ignored, leave --ignore-label out'
        )
    return names


def _check_doubles(names: Sequence[str]) -> None:
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f'class names are double: {doubles} in {list(names)}')


def _camvid_classes(root: Path) -> tuple[list[str] | None, int]:
    """Names in ``label_colors.txt``, None without it, and the label to ignore."""
    file = root / 'label_colors.txt'
    names = [line.split(maxsplit=3)[-1] for line in read_names(file)] if file.is_file() else []
    if names[-1:] == ['ignored']:  # what datumaro calls VOC's 255
        return names[:-1], len(names) - 1
    return names or None, 255


def _image_suffix(images: Path) -> str:
    """The suffix of a folder's images, of which mmseg reads one only."""
    suffixes = sorted({file.suffix for file in split_images(images.rglob('*'))[0]})
    if not suffixes:
        raise MissingFileError(f'{images} holds no image ({", ".join(IMAGE_SUFFIXES)})')
    if len(suffixes) > 1:
        raise UserError(f'{images} mixes {", ".join(suffixes)}: convert or rename to one of them')
    return suffixes[0]


def _with_check(steps: list, check: dict) -> list:
    """Steps with a check of labels, also in the views of a test, and no check of other data."""
    found = []
    for step in steps:
        views = step if isinstance(step, list) else [step]
        kinds = [view['type'] for view in views]
        if 'TestTimeAug' in kinds:
            step.transforms = _with_check(step.transforms, check)
        if 'CheckLabels' not in kinds:
            found.append(step)
        if 'LoadAnnotations' in kinds:
            found.append([check] if views is step else check)
    return found


def _find_list(root: Path, split: str) -> str:
    """The split's list, relative to ``root``; '' where there is none."""
    names = [name.format(split) for name in LIST_NAMES]
    return next((name for name in names if (root / name).is_file()), '')


def _classes_of_folders(folders: dict[str, Path]) -> tuple[str, ...]:
    found = {s: sorted(p.name for p in f.iterdir() if p.is_dir()) for s, f in folders.items()}
    for split, names in found.items():
        if not names:
            raise MissingFileError(
                f'{folders[split]} has no class folder, and there is no {split}_list.txt: sort the '
                'images into one folder per class, or write a list of lines "NAME LABEL"'
            )
    if len(found) > 1 and found['train'] != found['val']:
        only = [sorted(set(found[a]) - set(found[b])) for a, b in (FOLDERS, [*FOLDERS][::-1])]
        spelling = say_spelling(*only)
        raise UserError(
            f'{folders["train"].parent}: the class folders of train and val differ; only in train: '
            f'{only[0][:5]}, only in val: {only[1][:5]}'
            + (f'; {spelling}: rename them' if spelling else '')
        )
    return tuple(names)


def _classes_of_lists(
    root: Path, lists: dict[str, str], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Names that are given, in ``classes.txt``, or the numbers of the labels."""
    for split, name in lists.items():
        if not name:
            raise MissingFileError(f'{root} has no list for {split}, e.g. {split}_list.txt')
    file = root / 'classes.txt'
    if classes is None and file.is_file():
        classes = read_names(file)
    if classes is None:
        lines = [line for name in lists.values() for line in read_lines(root / name)]
        labels = [line.strip().rpartition(' ')[2] for line in lines]
        highest = max((int(label) for label in labels if label.isdecimal()), default=0)
        classes = [str(number) for number in range(highest + 1)]
    _check_doubles(classes)
    return tuple(classes)


def _prefix_of(root: Path, split: str, list_name: str) -> str:
    """What names are relative to: the split's folder or, where a list has them, maybe ``root``."""
    lines = read_lines(root / list_name) if list_name else []
    name = lines[0].strip().rpartition(' ')[0] if lines else ''
    is_below_root = not (root / split / name).exists() and (root / name).is_file()
    return '' if is_below_root else split
