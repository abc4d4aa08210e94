"""Images of classification: listed in a file, or sorted into class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cyclemlp_mm.datasets.file_names import (
    check_list_encoding,
    files_in,
    is_no_class,
    read_lines,
    say_spelling,
)
from cyclemlp_mm.datasets.image_files import split_images
from cyclemlp_mm.errors import UserError

from .findings import Report, count, some


def check_list(
    report: Report,
    ann_file: Path,
    folder: Path,
    classes: Sequence[str],
    with_label: bool,
    max_bad_fraction: float,
) -> list[tuple[str, dict]]:
    """Look at a list of lines ``NAME LABEL``, as mmpretrain's ``CustomDataset`` reads it.

    Args:
        report (Report): Gets the findings.
        ann_file (Path): The list.
        folder (Path): What its names are relative to.
        classes (Sequence[str]): Class names of the config; may be empty where it has none.
        with_label (bool): Whether lines have labels.
        max_bad_fraction (float): More than this part of the images missing is an error.

    Returns:
        list[tuple[str, dict]]: Image files that are there, each with an empty dict.
    """
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
    high = sorted({label for label in labels if label >= len(classes)})
    if classes and with_label:
        if high:
            report.error(
                ann_file,
                f'labels {some(high)} name no class; with {count(len(classes), "class")},'
                f' labels are 0 to {len(classes) - 1}',
                'Name all classes, or fix the labels',
            )
        _warn_of_empty(report, ann_file, classes, Counter(labels))
    here = [name for name in names if os.path.isfile(folder / name)]
    if len(here) < len(names):
        lacking = sorted(set(names) - set(here))
        spelling = say_spelling(lacking, files_in(folder))
        too_many = spelling or len(lacking) > max(1, max_bad_fraction * len(names)) or not here
        add = report.error if too_many else report.warning
        if spelling:
            remedy = 'Write the names of the files into the list'
        elif too_many:
            limit = f'max_bad_fraction={max_bad_fraction}'
            remedy = (
                f'More than {limit}: check data_prefix, copy them, or take them out of the list'
            )
        else:
            remedy = 'They are skipped in training'
        add(
            ann_file,
            f'{len(names) - len(here)} of {count(len(names), "image")} are not in {folder}: '
            f'{some(lacking)}' + f'. {spelling}' * bool(spelling),
            remedy,
        )
    if not names:
        report.error(ann_file, 'lists no image', 'Write lines "NAME LABEL"')
    return [(str(folder / name), {}) for name in here]


def check_class_folders(
    report: Report, folder: Path, classes: Sequence[str], suffixes: Sequence[str]
) -> list[tuple[str, dict]]:
    """Look at a folder of class folders, as mmpretrain's ``CustomDataset`` reads it.

    Args:
        report (Report): Gets the findings.
        folder (Path): It.
        classes (Sequence[str]): Class names of the config; may be empty where it has none.
        suffixes (Sequence[str]): That images end in.

    Returns:
        list[tuple[str, dict]]: Image files, each with an empty dict.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    hidden = [name for name in names if is_no_class(name)]
    if hidden:
        report.error(
            folder,
            f'mmpretrain takes every folder for a class, {some(hidden)} as well',
            'Take it out',
        )
    elif classes and len(classes) != len(names):
        report.error(
            folder,
            f'has {count(len(names), "class folder")} ({some(names)}), but the config '
            f'names {count(len(classes), "class")}',
            'Give --data DIR, which takes their names',
        )
    elif sorted(classes) == names != list(classes):
        report.error(
            folder,
            f'labels are in the order of its class folders ({some(names)}), but the config '
            f'names the classes as {some(list(classes))}: names would be exchanged',
            'Take that order for metainfo.classes',
        )
    found, others = {}, []
    for name in names:
        if name not in hidden:
            found[name], more = split_images((folder / name).rglob('*'), tuple(suffixes))
            others += more
    warn_of_passed_over(report, folder, others, suffixes)
    if not any(found.values()):
        report.error(folder, f'there is no image in a class folder ({", ".join(suffixes)})')
    else:
        images = {i: len(files) for i, files in enumerate(found.values())}
        _warn_of_empty(report, folder, list(found), images)
    return [(str(path), {}) for files in found.values() for path in files]


def warn_of_passed_over(
    report: Report, folder: Path, others: Sequence[Path], suffixes: Sequence[str]
) -> None:
    """Report files that a data set passes over, since their suffix is not one of its own.

    Args:
        report (Report): Gets the finding.
        folder (Path): Where they are.
        others (Sequence[Path]): The files.
        suffixes (Sequence[str]): What the data set takes for images.
    """
    if not others:
        return
    kinds = some(sorted({p.suffix.lower() or p.name for p in others}))
    images, _ = split_images(others)
    said = (
        f'{count(len(others), "file")} passed over ({kinds}), not ending in '
        f'{", ".join(suffixes)}: {some([p.name for p in others])}'
    )
    if images:
        report.warning(
            folder,
            said,
            f'{count(len(images), "file")} of them are images: convert or rename '
            'them, or name their suffixes in "extensions" of the data set',
        )
    else:
        report.note(folder, said)


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
