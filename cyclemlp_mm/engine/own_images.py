"""``--data DIR`` of a classification config: two layouts of a folder, told apart by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from cyclemlp_mm.datasets.file_names import (
    check_list_encoding,
    files_in,
    is_no_class,
    read_lines,
    read_names,
    say_spelling,
)
from cyclemlp_mm.datasets.image_files import IMAGE_SUFFIXES
from cyclemlp_mm.errors import MissingFileError, UserError

SPLITS = ('train', 'val')
#: Where a split's list of ``name label`` lines may lie, under the folder.
LIST_NAMES = ('{}_list.txt', '{}.txt', 'meta/{}.txt')


def use_image_folders(
    cfg: Config, root: Path, classes: Sequence[str] | None, needed: Sequence[str] = SPLITS
) -> tuple[str, ...]:
    """Point the loaders of a classification config at ``root``.

    - Class folders: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``.
    - Lists: ``train/`` and ``val/`` with images, however deep, and ``train_list.txt`` and
      ``val_list.txt`` (or ``{train,val}.txt``, or those in ``meta/``) with lines ``NAME LABEL``,
      NAME relative to the split's folder or to ``root``, labels from 0. They win over class
      folders.

    Args:
        cfg (Config): Changed in place.
        root (Path): The folder.
        classes (Sequence[str], optional): Lists only: names in the order of the labels. By default
            the lines of ``classes.txt``, or the labels' numbers.
        needed (Sequence[str]): Splits that must be there. Defaults to both.

    Returns:
        tuple[str]: Class names.

    Raises:
        MissingFileError: A part of the layout is missing.
        UserError: The splits' classes differ, or a line or label of a list is wrong.
    """
    splits = [split for split in SPLITS if (root / split).is_dir()]
    missing = [f'{split}/' for split in needed if split not in splits]
    if missing:
        raise MissingFileError(
            f'--data {root} lacks {", ".join(missing)}: expected train/CLASS/IMAGE and '
            'val/CLASS/IMAGE, or train/, val/ and lists train_list.txt, val_list.txt of lines '
            '"NAME LABEL"'
        )
    lists = {split: _find_list(root, split) for split in splits}
    if any(lists.values()):
        names = _classes_of_lists(root, lists, classes)
    else:
        if classes is not None:
            raise UserError(
                f'--classes: {root} has class folders, whose names are the classes; leave it out'
            )
        names = _classes_of_folders(root, splits)
    for phase, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = cfg.get(f'{phase}_dataloader')
        if loader is None or split not in splits:
            continue
        prefix, ann_file = split, ''
        if lists[split]:
            prefix, ann_file = _prefix_of(root, split, lists[split]), lists[split]
        for key in ('split', 'classes'):
            loader.dataset.pop(key, None)
        loader.dataset.update(
            type='CustomDataset',
            data_root=str(root),
            data_prefix=prefix,
            ann_file=ann_file,
            with_label=True,
            extensions=IMAGE_SUFFIXES,
            metainfo=dict(classes=names),
        )
    return names


def _find_list(root: Path, split: str) -> str:
    """The split's list, relative to ``root``; '' where there is none."""
    names = [name.format(split) for name in LIST_NAMES]
    return next((name for name in names if (root / name).is_file()), '')


def _classes_of_folders(root: Path, splits: Sequence[str]) -> tuple[str, ...]:
    found = {s: sorted(p.name for p in (root / s).iterdir() if p.is_dir()) for s in splits}
    hidden = [f'{s}/{name}' for s in splits for name in found[s] if is_no_class(name)]
    if hidden:  # mmpretrain lists the folders itself, and cannot be told to leave one out
        raise UserError(
            f'{root}: mmpretrain takes every folder for a class, {", ".join(hidden[:5])} as well: '
            'take it out'
        )
    for split, names in found.items():
        if not names:
            raise MissingFileError(
                f'{root / split} has no class folder and there is no {split}_list.txt: sort the '
                'images into one folder per class, or write a list of lines "NAME LABEL"'
            )
    if len(found) > 1 and found['train'] != found['val']:
        only = {s: [n for n in found[s] if n not in found[o]] for s, o in (SPLITS, SPLITS[::-1])}
        spelling = say_spelling(only['train'], only['val'])
        raise UserError(
            f'{root}: the class folders of train and val differ, so labels would not mean the '
            f'same; only in train: {only["train"][:5]}, only in val: {only["val"][:5]}'
            + (f'; {spelling}: rename them' if spelling else '')
        )
    return tuple(found[splits[0]])


def _classes_of_lists(
    root: Path, lists: dict[str, str], classes: Sequence[str] | None
) -> tuple[str, ...]:
    lacking = [split for split in lists if not lists[split]]
    if lacking:
        raise MissingFileError(
            f'{root} has {", ".join(filter(None, lists.values()))} but no list '
            f'for {lacking[0]}, e.g. {lacking[0]}_list.txt'
        )
    highest = max(_highest_label(root / name) for name in lists.values())
    file = root / 'classes.txt'
    if classes is None and file.is_file():
        classes = read_names(file)
    if classes is None:
        return tuple(str(label) for label in range(highest + 1))
    if highest >= len(classes):
        raise UserError(
            f'{root}: the lists have labels up to {highest}, but there are {len(classes)} class '
            f'names: labels count from 0, name them all'
        )
    return tuple(classes)


def _highest_label(file: Path) -> int:
    labels = []
    check_list_encoding(file)
    for number, line in enumerate(read_lines(file), start=1):
        name, _, label = line.strip().rpartition(' ')
        if not name or not label.isdigit():
            raise UserError(
                f'{file}, line {number}: expected "NAME LABEL" with a label from 0, but got '
                f'{line!r}'
            )
        labels.append(int(label))
    if not labels:
        raise UserError(f'{file} is empty')
    return max(labels)


def _prefix_of(root: Path, split: str, list_name: str) -> str:
    """What the list's names are relative to: the split's folder, or ``root``."""
    name = read_lines(root / list_name)[0].strip().rpartition(' ')[0]
    for prefix in (split, ''):
        if (root / prefix / name).is_file():
            return prefix
    spelling = say_spelling([name], files_in(root / split)) or say_spelling([name], files_in(root))
    raise MissingFileError(
        f'{root / list_name} begins with {name}, which is neither in {root / split} nor in {root}'
        + (f'; {spelling}: write the names of the files' if spelling else '')
    )
