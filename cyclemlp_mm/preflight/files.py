"""Files of a data set: missing, not read, broken, converted, of other channels, shared."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from cyclemlp_mm.datasets.file_names import files_in, say_spelling
from cyclemlp_mm.datasets.image_files import BadImageError, split_images
from cyclemlp_mm.datasets.image_notes import kind_of
from cyclemlp_mm.datasets.load_image import DARK_KIND, UNSURE_KIND, LoadCheckedImage
from cyclemlp_mm.errors import count, some

from .findings import Report

#: How many files of a data set are looked at where not all are.
SAMPLED = 64
#: So many images are tried until one can be read.
_MOST_TRIED = 5


def sample(items: Sequence, full: bool) -> list:
    """All items, or ``SAMPLED`` evenly spread ones."""
    if full or len(items) <= SAMPLED:
        return list(items)
    return [items[i * len(items) // SAMPLED] for i in range(SAMPLED)]


def in_parallel(look: Callable, items: Sequence, title: str) -> list:
    """``look`` at every item, in threads, with a progress bar on a terminal."""
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        results = pool.map(look, items)
        # The stream below the guarded one: the bar moves the cursor.
        console = Console(file=getattr(sys.stderr, 'raw', sys.stderr))
        hidden = not (console.is_terminal and sys.stderr.isatty())
        bar = dict(total=len(items), console=console, transient=True, disable=hidden)
        return list(track(results, title, **bar))


def report_missing(
    report: Report,
    where: Path,
    folder: Path,
    names: Sequence[str],
    total: int,
    allowed: float,
    lack: str = 'are missing',
) -> None:
    """Report files that are not in a folder: an error if the cause is clear or too many are."""
    if not names:
        return
    what = f'{len(names)} of {count(total, "image")} {lack}: {some(names)}'
    there = files_in(folder) if folder.is_dir() else []
    by_name = {_last(file): file for file in there}
    moved = [(name, by_name[_last(name)]) for name in names if _last(name) in by_name]
    cause = say_spelling(names, there)
    if moved and not cause:
        name, other = moved[0]
        cause = f'{len(moved)} of them are there in another folder, e.g. {name!a} is {other!a}'
    if cause:
        report.error(where, f'{what}; {cause}', 'Write the names of the files into the annotations')
    elif len(names) > allowed:
        report.error(where, what, 'Check data_root and data_prefix, or take them out of the list')
    else:
        report.warning(where, what, 'They are skipped in training; copy them, or take them out')


def report_passed_over(report: Report, folder: Path, others: Sequence[Path], suffixes: str) -> None:
    """Report files that a data set does not read, as their suffix is not one of its own."""
    if not others:
        return
    names = some([path.name for path in others])
    what = f'{count(len(others), "file")} passed over, not ending in {suffixes}: {names}'
    images = len(split_images(others)[0])
    fix = f'{count(images, "file")} of them are images: rename them, or set extensions, img_suffix'
    report.add('warning' if images else 'note', folder, what, fix * bool(images))


def _last(name: str) -> str:
    return name.replace('\\', '/').rpartition('/')[2]


def check_images(
    report: Report,
    files: Sequence[tuple[str, dict]],
    full: bool,
    max_bad_fraction: float,
    loader: LoadCheckedImage | None = None,
) -> None:
    """Decode images."""
    chosen = sample(files, full)
    if not chosen:
        return
    where = Path(chosen[0][0]).parent
    broken, unusual = [], defaultdict(list)
    outcomes = in_parallel(
        partial(_look, loader=loader or LoadCheckedImage()), chosen, f'images in {where.name}'
    )
    for (path, _), (trouble, kinds) in zip(chosen, outcomes):
        broken += trouble
        for kind in kinds:
            unusual[kind_of(kind)].append((Path(path).name, kind))
    of = f'of {count(len(chosen), "image")} looked at'
    if broken:
        what = f'{len(broken)} {of} cannot be used: {some(broken)}'
        if len(broken) > max(1, max_bad_fraction * len(chosen)):
            fix = f'More than max_bad_fraction={max_bad_fraction}: fix or remove them'
            report.error(where, what, fix)
        else:
            report.warning(where, what, 'They are skipped in training')
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
    if len(chosen) < len(files):
        seen = f'{len(chosen)} of {len(files)} images were looked at'
        report.note(where, f'{seen}; tools/check.py --full looks at all')


def _look(file: tuple[str, dict], loader: LoadCheckedImage) -> tuple[list[str], list[str]]:
    """What is wrong with an image, and what has to be converted."""
    path, known = file
    try:
        return [], loader.read({**known, 'img_path': path})[1]
    except BadImageError as error:
        return [str(error).replace(path, Path(path).name)], []


def check_channels(
    report: Report,
    cfg: Config,
    files: Sequence[tuple[str, dict]],
    loader: LoadCheckedImage,
    seen: set[int],
) -> None:
    """Compare the channels that a pipeline loads with those that the model takes."""
    image = None
    for path, known in files[:_MOST_TRIED]:
        with suppress(BadImageError):  # another check reports it
            image, _ = loader.read({**known, 'img_path': path})
            break
    if image is None:
        return
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels in seen:
        return
    seen.add(channels)
    settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    loaded = f'but the images are loaded with {count(channels, "channel")}, e.g. {path}'
    spread = channels == 1 and cfg.get('default_scope') != 'mmdet'  # grey becomes as many
    for name in ('mean', 'std'):
        values = settings.get(name) or [0]
        if len(values) not in (1, channels) and not spread:
            what = f'has {count(len(values), "value")}, {loaded}'
            fix = f'Write one value for all, {channels} values, or None for mean and std'
            report.error(f'data_preprocessor.{name}', what, fix)
    if channels == 1:
        channels = len(settings.get('mean') or [0])
    taken = (cfg.model.get('backbone') or {}).get('in_channels', 3)
    if 'backbone' in cfg.model and taken != channels:
        fix = f'Set it to {channels}, or change the loading step'
        report.error('model.backbone.in_channels', f'is {taken}, {loaded}', fix)


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
