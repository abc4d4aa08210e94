"""Image files of a data set: broken ones, and ones that have to be converted."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

from mmengine.config import Config

from cyclemlp_mm.datasets.image_files import BadImageError
from cyclemlp_mm.datasets.image_notes import kind_of
from cyclemlp_mm.datasets.load_image import DARK_KIND, UNSURE_KIND, LoadCheckedImage, read_image
from cyclemlp_mm.errors import count, some

from .files import in_parallel, sample
from .findings import Report

#: So many images are tried until one can be read.
_MOST_TRIED = 5


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
    outcomes = in_parallel(partial(_look, loader=loader), chosen, f'images in {where.name}')
    for (path, _), outcome in zip(chosen, outcomes):
        if isinstance(outcome, str):
            broken.append(outcome)
        for kind in outcome if isinstance(outcome, list) else ():
            unusual[kind_of(kind)].append((Path(path).name, kind))
    total = count(len(chosen), 'image')
    if broken:
        too_many = len(broken) > max(1, max_bad_fraction * len(chosen))
        (report.error if too_many else report.warning)(
            where,
            f'{len(broken)} of {total} looked at cannot be used: {some(broken)}',
            f'More than max_bad_fraction={max_bad_fraction}: fix or remove them'
            if too_many
            else 'They are skipped in training',
        )
    for kind, found in unusual.items():
        looked = f'{len(found)} of {total} looked at'
        names = some([name for name, _ in found])
        if kind == DARK_KIND:
            most = max(int(re.search(r'image_max_value=(\d+)', k)[1]) for _, k in found)
            report.warning(
                where,
                f'{looked}: {found[0][1]}, e.g. {found[0][0]}',
                f'Say which value is to become 255: --cfg-options image_max_value={most}',
            )
        elif kind == UNSURE_KIND:
            stored = any(k.startswith('EXIF rotation left out') for k in unusual)
            others = ', though annotations of other images here are for the image as stored'
            report.warning(
                where,
                f'{looked} have an {kind}, so nothing tells whether their annotations are for the '
                f'image as stored or as turned: {names}. They are turned{others * stored}',
                'Save the images turned, without EXIF orientation',
            )
        else:
            report.note(where, f'{looked} are converted ({kind}): {names}')
    if len(chosen) < len(files):
        report.note(where, f'{len(chosen)} of {len(files)} images were looked at; --full takes all')


def _look(file: tuple[str, dict], loader: LoadCheckedImage | None) -> list[str] | str:
    path, known = file
    try:
        if loader is None:
            return read_image(path, known)[1]
        return loader.read({**known, 'img_path': path})[1]
    except BadImageError as error:
        return str(error).replace(path, Path(path).name)


def check_channels(
    report: Report,
    cfg: Config,
    files: Sequence[tuple[str, dict]],
    loader: LoadCheckedImage,
    seen: set[int],
) -> None:
    """Compare the channels that a pipeline loads with those that the model takes."""
    for path, known in files[:_MOST_TRIED]:
        with suppress(BadImageError):  # another check reports it
            image, _ = loader.read({**known, 'img_path': path})
            break
    else:
        return
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels in seen:
        return
    seen.add(channels)
    settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    loaded = f'but the images are loaded with {count(channels, "channel")}, e.g. {path}'
    for name in ('mean', 'std'):
        values = settings.get(name) or [0]
        spread = channels == 1 and cfg.get('default_scope') != 'mmdet'  # grey becomes as many
        if len(values) not in (1, channels) and not spread:
            report.error(
                f'data_preprocessor.{name}',
                f'has {count(len(values), "value")}, {loaded}',
                f'Write {count(channels, "value")}'
                if channels in (1, 3)
                else 'Write one value for all, or None for mean and std',
            )
    if channels == 1:
        channels = len(settings.get('mean') or [0])
    taken = (cfg.model.get('backbone') or {}).get('in_channels', 3)
    if 'backbone' in cfg.model and taken != channels:
        report.error(
            'model.backbone.in_channels',
            f'is {taken}, {loaded}',
            f'Set it to {channels}, or change the loading step',
        )


def check_shared_images(report: Report, train: Iterable[str], val: Iterable[str]) -> None:
    """Warn of images that are trained and evaluated, under whatever names."""
    by_size = defaultdict(list)
    for path in train:
        by_size[os.path.getsize(path)].append(path)
    known = lru_cache(maxsize=None)(_ending)
    shared = [
        path
        for path in val
        if any(_ending(path) == known(other) for other in by_size[os.path.getsize(path)])
    ]
    if shared:
        report.warning(
            Path(shared[0]).parent,
            f'{count(len(shared), "image")} of validation or test are trained on as well: '
            f'{some([Path(path).name for path in shared])}; the figures will be too good',
            'Take them out of one of the two',
        )


def _ending(path: str) -> bytes:
    """The last bytes of a file: of compressed pixels, unlike its header."""
    with open(path, 'rb') as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        return file.read()
