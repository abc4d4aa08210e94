"""Folders of images, and lists and class folders as mmpretrain's ``CustomDataset`` reads them."""

import inspect
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from cyclemlp_mm.datasets.file_names import check_list_encoding, is_no_class, read_lines
from cyclemlp_mm.datasets.image_files import IMAGE_SUFFIXES, split_images
from cyclemlp_mm.errors import UserError, count, some

from .files import report_missing, report_passed_over
from .findings import Report
from .settings import class_of


def check_image_folder(
    report: Report, cfg: Config, dataset: ConfigDict, classes: Sequence[str]
) -> list[tuple[str, dict]]:
    """Look at a list, at class folders, or at a folder; returns image files, with empty dicts."""
    root = Path(dataset.get('data_root') or '.')
    prefix = dataset.get('data_prefix') or {}
    prefix = prefix if isinstance(prefix, str) else prefix.get('img_path', '')
    folder = root / (prefix or dataset.get('split') or '')
    if not folder.is_dir():
        report.error(folder, 'there is no such folder (data_prefix of a data set)')
        return []
    suffixes, with_label = IMAGE_SUFFIXES, False
    custom = _as_custom(dataset) if cfg.default_scope == 'mmpretrain' else None
    if custom is not None:
        with_label = dataset.get('with_label', True) and dataset.get('split') != 'test'
        ann_file = root / (dataset.get('ann_file') or f'meta/{dataset.get("split")}.txt')
        if dataset.get('ann_file') or ann_file.is_file():  # the latter is ImageNet's
            limit = cfg.get('max_bad_fraction', 0.05)
            names = _check_list(report, ann_file, folder, classes, with_label, limit)
            return [(str(folder / name), {}) for name in names]
        default = inspect.signature(custom.__init__).parameters.get('extensions')
        own = getattr(custom, 'IMG_EXTENSIONS', ()) or dataset.get('extensions')
        suffixes = tuple(own or getattr(default, 'default', None) or IMAGE_SUFFIXES)
    if with_label:
        images, others = _check_class_folders(report, folder, classes, suffixes)
    else:
        images, others = split_images(folder.rglob('*'), suffixes)
    if custom is not None:
        report_passed_over(report, folder, others, ', '.join(suffixes))
    if not images:
        where = 'there is no image' + ' in a class folder' * bool(with_label)
        report.error(folder, f'{where} ({", ".join(suffixes)})')
    return [(str(path), {}) for path in images]


def _as_custom(dataset: ConfigDict) -> type | None:
    """The class of a data set that reads as mmpretrain's ``CustomDataset`` does; else None."""
    from mmpretrain.datasets import CustomDataset  # not needed by the other toolboxes

    kind = class_of(dataset, DATASETS)
    is_custom = getattr(kind, 'load_data_list', None) is CustomDataset.load_data_list
    return kind if is_custom else None


def _check_list(
    report: Report,
    ann_file: Path,
    folder: Path,
    classes: Sequence[str],
    with_label: bool,
    max_bad_fraction: float,
) -> list[str]:
    """Look at a list of lines ``NAME LABEL``; returns the names of images that are there."""
    try:
        check_list_encoding(ann_file)
        lines = read_lines(ann_file)
    except UserError as error:
        report.error(ann_file, str(error).removeprefix(f'{ann_file} '))
        return []
    names, labels, wrong = [], Counter(), []
    for number, line in enumerate(lines, start=1):
        name, _, label = line.strip().rpartition(' ') if with_label else (line, '', '0')
        if name and label.isdecimal():
            names.append(name)
            labels[int(label)] += 1
        else:
            wrong.append(f'line {number} {line!r}')
    if wrong:
        what = f'{len(wrong)} of {count(len(lines), "line")} are no "NAME LABEL", labels from 0'
        report.error(ann_file, f'{what}: {some(wrong, 3)}')
    high = sorted(label for label in labels if label >= len(classes))
    if classes and with_label and high:
        rule = f'with {count(len(classes), "class")}, labels are 0 to {len(classes) - 1}'
        what = f'labels {some(high)} name no class; {rule}'
        report.error(ann_file, what, 'Name all classes, or fix the labels')
    if with_label:
        _warn_of_empty(report, ann_file, classes, labels)
    here = [name for name in names if os.path.isfile(folder / name)]
    missing = sorted(set(names) - set(here))
    allowed = min(max(1, max_bad_fraction * len(names)), len(names) - 1)
    report_missing(report, ann_file, folder, missing, len(names), allowed, f'are not in {folder}')
    if not names:
        report.error(ann_file, 'lists no image', 'Write lines "NAME LABEL"')
    return here


def _check_class_folders(
    report: Report, folder: Path, classes: Sequence[str], suffixes: tuple[str, ...]
) -> tuple[list[Path], list[Path]]:
    """Look at a folder of class folders; returns the images and the other files."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    hidden = [name for name in names if is_no_class(name)]
    if hidden:
        what = f'mmpretrain takes every folder for a class, {some(hidden)} as well'
        report.error(folder, what, 'Take it out')
    elif classes and (len(classes) != len(names) or sorted(classes) == names != list(classes)):
        what = f'has {count(len(names), "class folder")} ({some(names)}), but the config names '
        what += f'{count(len(classes), "class")}: {some(list(classes))}; names would be exchanged'
        report.error(folder, what, 'Give --data DIR, or take that order for metainfo.classes')
    names = [name for name in names if name not in hidden]
    found = [split_images((folder / name).rglob('*'), suffixes) for name in names]
    images = [path for files, _ in found for path in files]
    if images:
        _warn_of_empty(report, folder, names, {i: files for i, (files, _) in enumerate(found)})
    return images, [path for _, others in found for path in others]


def _warn_of_empty(report: Report, where: Path, classes: Sequence[str], images: dict) -> None:
    empty = [name for i, name in enumerate(classes) if not images.get(i)]
    if empty:
        what = f'no image of {count(len(empty), "class")}: {some(empty)}'
        report.warning(where, what, 'They cannot be learned, or not be evaluated')
