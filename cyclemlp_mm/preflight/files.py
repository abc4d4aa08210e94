"""Files of data sets: missing, not listed, broken, converted, of other channels, shared."""

import inspect
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from rich.console import Console
from rich.progress import track

from cyclemlp_mm.datasets import file_names
from cyclemlp_mm.datasets.image_files import BadImageError, split_images
from cyclemlp_mm.datasets.image_notes import kind_of
from cyclemlp_mm.datasets.load_image import DARK_KIND, UNSURE_KIND, LoadCheckedImage
from cyclemlp_mm.errors import UserError, count, some

from .findings import Report
from .settings import class_of

#: How many files of a data set are looked at where not all are.
SAMPLED = 64
#: Lines of a list of images by class.
_LABELLED = re.compile(r'.*\S \d+\s*$')


def sample(items: Sequence, full: bool) -> list:
    """All items, or ``SAMPLED`` evenly spread ones."""
    if full or len(items) <= SAMPLED:
        return list(items)
    return [items[i * len(items) // SAMPLED] for i in range(SAMPLED)]


def in_parallel(look: Callable, items: Sequence, title: str) -> list:
    """``look`` at every item, in threads, with a progress bar on a terminal."""
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        # The stream below the guarded one: the bar moves the cursor.
        console = Console(file=getattr(sys.stderr, 'raw', sys.stderr))
        bar = dict(console=console, transient=True, disable=not sys.stderr.isatty())
        return list(track(pool.map(look, items), title, len(items), **bar))


def list_images(
    report: Report, cfg: Config, dataset: ConfigDict, classes: Sequence[str], with_labels: bool
) -> list[dict]:
    """Build a data set without its pipeline; returns what it says about the images that are there.

    Reported is what cannot be read, what is missing, and labels that do not fit the class names.
    Nothing is known of data sets that are not mmengine's.
    """
    kind = class_of(dataset)
    if not (inspect.isclass(kind) and issubclass(kind, BaseDataset)):
        return []
    root, prefix = Path(dataset.get('data_root') or '.'), dataset.get('data_prefix')
    prefix = prefix.get('img_path') if isinstance(prefix, dict) else prefix
    # A list without ann_file is that of mmpretrain's ImageNet.
    ann_file = root / (dataset.get('ann_file') or f'meta/{dataset.get("split")}.txt')
    where = ann_file if ann_file.is_file() else root / (prefix or dataset.get('split') or '')
    lines: list[str] = []
    try:
        if where.suffix == '.txt' and where == ann_file:
            file_names.check_list_encoding(ann_file)
            lines = file_names.read_lines(ann_file)
        data = DATASETS.build({**dataset, 'pipeline': []})
        infos = [data.get_data_info(i) for i in range(len(data))]
    except Exception as error:  # also of classes that are not the toolboxes'
        reason = f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0]}'
        if isinstance(error, UserError):  # about the list
            report.error(where, str(error).removeprefix(f'{where} '))
            return []
        if 'number of subfolders' in reason:
            _check_class_folders(report, where, classes)
            return []
        if 'to concatenate' in reason:  # of NumPy
            reason = 'no image is listed'
        what = f'{dataset.type} cannot read the data ({reason})'
        wrong = [f'line {n} {s!r}' for n, s in enumerate(lines, 1) if not _LABELLED.match(s)]
        if wrong and isinstance(error, ValueError):
            what += f'; {len(wrong)} of {count(len(lines), "line")} are no "NAME LABEL", labels '
            what += f'from 0: {some(wrong, 3)}'
        report.error(where, what, 'Check data_root, data_prefix, and the suffixes of images')
        return []
    infos = [info for info in infos if isinstance(info.get('img_path'), str)]
    if cfg.default_scope == 'mmpretrain':
        if hasattr(data, 'folder_to_idx'):
            _check_class_folders(report, where, classes)
        _check_class_labels(report, where, infos, classes or data.metainfo.get('classes') or ())
    if infos and not data.ann_file:
        _check_unlisted(report, data, infos)
    if dataset.get('backend_args'):  # where files are is not known
        return infos
    allowed = max(1, cfg.get('max_bad_fraction', 0.05) * len(infos))
    infos = those_there(report, infos, 'img_path', allowed)
    if with_labels and infos and infos[0].get('seg_map_path'):
        infos = those_there(report, infos, 'seg_map_path', 0)
    return infos


def _check_class_folders(report: Report, folder: Path, classes: Sequence[str]) -> None:
    """Compare class folders, which mmpretrain numbers in alphabetical order, with class names."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    hidden = [name for name in names if file_names.is_no_class(name)]
    if hidden:
        what = f'mmpretrain takes every folder for a class, {some(hidden)} as well'
        report.error(folder, what, 'Take it out')
    elif classes and (len(classes) != len(names) or sorted(classes) == names != list(classes)):
        what = f'has {count(len(names), "class folder")} ({some(names)}), but the config names '
        what += f'{count(len(classes), "class")}: {some(list(classes))}; names would be exchanged'
        report.error(folder, what, 'Give --data DIR, or take that order for metainfo.classes')


def _check_class_labels(
    report: Report, where: Path, infos: Sequence[dict], classes: Sequence[str]
) -> None:
    given = (label for info in infos for label in np.ravel(info.get('gt_label', [])))
    labels = Counter(int(label) for label in given if isinstance(label, np.integer))
    stray = sorted(label for label in labels if not 0 <= label < len(classes))
    if classes and stray:
        rule = f'with {count(len(classes), "class")}, labels are 0 to {len(classes) - 1}'
        what = f'labels {some(stray)} name no class; {rule}'
        report.error(where, what, 'Name all classes, or fix the labels')
    empty = [name for i, name in enumerate(classes) if not labels[i]]
    if labels and empty:
        what = f'no image of {count(len(empty), "class")}: {some(empty)}'
        report.warning(where, what, 'They cannot be learned, or not be evaluated')


def _check_unlisted(report: Report, data: BaseDataset, infos: Sequence[dict]) -> None:
    """Warn of images in the folder that a data set does not read, because of their suffix."""
    folder, keys = _common_folder(infos, 'img_path'), ('img_path', 'seg_map_path')
    listed = {os.path.abspath(info[key]) for info in infos for key in keys if info.get(key)}
    here, _ = split_images(folder.rglob('*'))
    others = [path.name for path in here if os.path.abspath(path) not in listed]
    if others:
        suffix = getattr(data, 'img_suffix', None) or ', '.join(getattr(data, 'extensions', ()))
        what = f'{count(len(others), "image file")} passed over, not ending in {suffix}: '
        report.warning(folder, what + some(others), 'Rename them, or set extensions, img_suffix')


def _common_folder(infos: Sequence[dict], key: str) -> Path:
    return Path(os.path.commonpath([os.path.dirname(info[key]) for info in infos]))


def those_there(
    report: Report, infos: list[dict], key: str, allowed: float, folder: Path | None = None
) -> list[dict]:
    """Infos whose file under a key is there; ``folder`` has all of them, by default the deepest.

    Others are an error if the cause is clear, if there are more than allowed, or if they are all.
    """
    missing = [info for info in infos if not os.path.exists(info[key])]
    if not missing or '://' in infos[0][key]:
        return infos
    folder = folder or _common_folder(infos, key)
    paths = (os.path.normpath(info[key]) for info in missing)
    names = [path.removeprefix(f'{os.path.normpath(folder)}/') for path in paths]
    lack = 'are missing' if key == 'img_path' else 'have no label image, expected'
    what = f'{len(names)} of {count(len(infos), "image")} {lack}: {some(names)}'
    there = file_names.files_in(folder) if folder.is_dir() else []
    by_name = {PureWindowsPath(file).name: file for file in there}  # with \\ or /
    moved = [(n, by_name[last]) for n in names if (last := PureWindowsPath(n).name) in by_name]
    cause = file_names.say_spelling(names, there)
    if moved and not cause:
        name, other = moved[0]
        cause = f'{len(moved)} of them are there in another folder, e.g. {name!a} is {other!a}'
    if cause:
        fix = 'Write the names of files into the annotations' + ', with /' * ('backsl' in cause)
        report.error(folder, f'{what}; {cause}', fix)
    elif len(missing) > allowed or len(missing) == len(infos):
        report.error(folder, what, 'Check data_root and data_prefix, or take them out of the list')
    else:
        report.warning(
            folder,
            what,
            'Training skips them, and all that is in them counts as missed in an '
            'evaluation; copy them, or take them out',
        )
    return [info for info in infos if os.path.exists(info[key])]


def check_images(
    report: Report, cfg: Config, infos: Sequence[dict], full: bool, loader: LoadCheckedImage
) -> dict[int, str]:
    """Decode images; returns the numbers of channels that are loaded, with an example of each."""
    chosen, broken, unusual, channels = sample(infos, full), [], defaultdict(list), {}
    if not chosen:
        return channels
    where = Path(chosen[0]['img_path']).parent
    looks = in_parallel(partial(_look, loader), chosen, f'images in {where.name}')
    for info, (trouble, kinds, number) in zip(chosen, looks):
        name = os.path.basename(info['img_path'])
        if trouble:
            broken.append(trouble.replace(info['img_path'], name))
        else:
            channels.setdefault(number, info['img_path'])
        for kind in kinds:
            unusual[kind_of(kind)].append((name, kind))
    of = f'of {count(len(chosen), "image")} looked at'
    if broken:
        level, fix, fraction = 'warning', 'They are skipped', cfg.get('max_bad_fraction', 0.05)
        if len(broken) > max(1, fraction * len(chosen)):
            level, fix = 'error', f'More than max_bad_fraction={fraction}: fix or remove them'
        report.add(level, where, f'{len(broken)} {of} cannot be used: {some(broken)}', fix)
    for kind, found in unusual.items():
        looked, names = f'{len(found)} {of}', some([name for name, _ in found])
        if kind == DARK_KIND:
            most = max(int(re.search(r'image_max_value=(\d+)', k)[1]) for _, k in found)
            fix = f'Set the value that becomes 255: --cfg-options image_max_value={most}'
            report.warning(where, f'{looked}: {found[0][1]}, e.g. {found[0][0]}', fix)
        elif kind == UNSURE_KIND:
            stored = any(other.startswith('EXIF rotation left out') for other in unusual)
            others = ' (as those of other images here)' * stored
            fix = f'If annotations are for it as stored{others}, save it without EXIF rotation'
            report.warning(where, f'{looked} have an {kind} and are turned: {names}', fix)
        else:
            report.note(where, f'{looked} are converted ({kind}): {names}')
    if len(chosen) < len(infos):
        seen = f'{len(chosen)} of {len(infos)} images were looked at'
        report.note(where, f'{seen}; tools/check.py --full looks at all')
    return channels


def _look(loader: LoadCheckedImage, info: dict) -> tuple[str, list[str], int]:
    """What is wrong with an image, what has to be converted, and its number of channels."""
    try:
        image, converted = loader.read(info)
    except BadImageError as error:
        return str(error), [], 0
    return '', converted, 1 if image.ndim == 2 else image.shape[2]


def check_channels(report: Report, cfg: Config, loaded: dict[int, str]) -> None:
    """Compare the channels that a pipeline loads, with an example each, and the model's."""
    settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    taken = (cfg.model.get('backbone') or {}).get('in_channels', 3)
    for channels, path in loaded.items():
        there = f'but the images are loaded with {count(channels, "channel")}, e.g. {path}'
        spread = channels == 1 and cfg.get('default_scope') != 'mmdet'  # grey becomes as many
        for name in ('mean', 'std'):
            values = settings.get(name) or [0]
            if len(values) not in (1, channels) and not spread:
                fix = f'Write one value for all, {channels} values, or None for mean and std'
                what = f'has {count(len(values), "value")}, {there}'
                report.error(f'data_preprocessor.{name}', what, fix)
        given = len(settings.get('mean') or [0]) if channels == 1 else channels
        if 'backbone' in cfg.model and taken != given:
            fix = f'Set it to {given}, or change the loading step'
            report.error('model.backbone.in_channels', f'is {taken}, {there}', fix)


def check_shared_images(report: Report, train: Iterable[str], val: Iterable[str]) -> None:
    """Warn of images of the training set that are evaluated, too, under whatever names."""
    sizes = {os.path.getsize(path) for path in val}
    trained = {_end_of(path) for path in train if os.path.getsize(path) in sizes}
    shared = [path for path in val if _end_of(path) in trained]
    if shared:
        names = some([Path(path).name for path in shared])
        what = f'{count(len(shared), "image")} of validation or test are in the training set'
        fix = 'Take them out of one of the two'
        report.warning(Path(shared[0]).parent, f'{what}: {names}', fix)


def _end_of(path: str) -> tuple[int, bytes]:
    """Size and last bytes of a file: of compressed pixels, unlike its header."""
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        file.seek(max(0, size - 4096))
        return size, file.read()
