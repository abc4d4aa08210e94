"""Images of classification, as mmpretrain's ``CustomDataset`` reads them: a list, or folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cyclemlp_mm.datasets.file_names import check_list_encoding, is_no_class, read_lines
from cyclemlp_mm.datasets.image_files import split_images
from cyclemlp_mm.errors import UserError

from .files import report_missing, report_passed_over
from .findings import Report, count, some


def check_list(
    report: Report,
    ann_file: Path,
    folder: Path,
    classes: Sequence[str],
    with_label: bool,
    max_bad_fraction: float,
) -> list[tuple[str, dict]]:
    """Look at a list of lines ``NAME LABEL``; returns the image files, each with an empty dict."""
    try:
        check_list_encoding(ann_file)
        lines = read_lines(ann_file)
    except UserError as error:
        report.error(ann_file, str(error).removeprefix(f'{ann_file} '))
        return []
    names, labels, wrong = [], [], []
    for number, line in enumerate(lines, start=1):
        name, _, label = line.strip().rpartition(' ') if with_label else (line, '', '0')
        if name and label.isdecimal():
            names.append(name)
            labels.append(int(label))
        else:
            wrong.append(f'line {number} {line!r}')
    if wrong:
        report.error(
            ann_file,
            f'{len(wrong)} of {count(len(lines), "line")} are no "NAME LABEL" '
            f'with a label from 0: {some(wrong, 3)}',
        )
    if classes and with_label:
        high = sorted({label for label in labels if label >= len(classes)})
        if high:
            report.error(
                ann_file,
                f'labels {some(high)} name no class; with {count(len(classes), "class")},'
                f' labels are 0 to {len(classes) - 1}',
                'Name all classes, or fix the labels',
            )
        _warn_of_empty(report, ann_file, classes, Counter(labels))
    here = [name for name in names if os.path.isfile(folder / name)]
    missing = sorted(set(names) - set(here))
    allowed = min(max(1, max_bad_fraction * len(names)), len(names) - 1)
    report_missing(report, ann_file, folder, missing, len(names), allowed, f'are not in {folder}')
    if not names:
        report.error(ann_file, 'lists no image', 'Write lines "NAME LABEL"')
    return [(str(folder / name), {}) for name in here]


def check_class_folders(
    report: Report, folder: Path, classes: Sequence[str], suffixes: Sequence[str]
) -> list[tuple[str, dict]]:
    """Look at a folder of class folders; returns the image files, each with an empty dict."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    hidden = [name for name in names if is_no_class(name)]
    if hidden:
        report.error(
            folder,
            f'mmpretrain takes every folder for a class, {some(hidden)} as well',
            'Take it out',
        )
    elif classes and (len(classes) != len(names) or sorted(classes) == names != list(classes)):
        report.error(
            folder,
            f'has {count(len(names), "class folder")}, whose order gives the labels '
            f'({some(names)}), but the config names {count(len(classes), "class")}: '
            f'{some(list(classes))}; names would be exchanged',
            'Give --data DIR, which takes their names, or take that order for metainfo.classes',
        )
    found, others = {}, []
    for name in names:
        if name not in hidden:
            found[name], more = split_images((folder / name).rglob('*'), tuple(suffixes))
            others += more
    report_passed_over(report, folder, others, ', '.join(suffixes))
    if not any(found.values()):
        report.error(folder, f'there is no image in a class folder ({", ".join(suffixes)})')
    else:
        images = {i: len(files) for i, files in enumerate(found.values())}
        _warn_of_empty(report, folder, list(found), images)
    return [(str(path), {}) for files in found.values() for path in files]


def _warn_of_empty(
    report: Report, where: Path, classes: Sequence[str], images: dict[int, int]
) -> None:
    empty = [name for i, name in enumerate(classes) if not images.get(i)]
    if empty:
        report.warning(
            where,
            f'no image of {count(len(empty), "class")}: {some(empty)}',
            'They cannot be learned, or not be evaluated',
        )
