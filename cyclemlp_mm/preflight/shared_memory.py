"""Whether /dev/shm has room for the batches that worker processes hand over."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmengine.config import Config

from .findings import Report

_FOLDER = '/dev/shm'
_SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'size')


def check_shared_memory(report: Report, cfg: Config) -> None:
    """Warn where it may fill up, an error where one batch does not fit: workers hang or die then.

    Args:
        report (Report): Findings are added.
        cfg (Config): Sizes of images are those that its pipelines resize or crop to.
    """
    try:
        status = os.statvfs(_FOLDER)
    except (OSError, AttributeError):  # no Linux
        return
    free = status.f_bavail * status.f_frsize
    needed = 0
    for key in ('train_dataloader', 'val_dataloader'):
        loader = cfg.get(key) or {}
        workers, images = loader.get('num_workers', 0), loader.get('batch_size', 1)
        sizes = list(_pixels(loader.get('dataset')))
        if not workers or not sizes:
            continue
        batch = 3 * max(sizes) * images  # bytes of RGB
        where = f'{key}.num_workers'
        remedy = (
            'Give more shared memory (docker run --shm-size=8g), or --cfg-options '
            f'{where}=0 {key}.persistent_workers=False'
        )
        say = f'{_FOLDER} has {free / 1e6:.0f} MB left, through which workers hand over images'
        if free < batch / 2:  # images may be narrower than the largest size
            report.error(where, f'{say}: less than one batch of {batch / 1e6:.0f} MB', remedy)
            return
        needed += batch * workers * (loader.get('prefetch_factor') or 2)
        if free < needed:
            what = f'{workers} workers fill {needed / 1e6:.0f} MB, and then hang or die'
            report.warning(where, f'{say}: {what}', remedy)
            return


def _pixels(node: object) -> Iterator[int]:
    """Areas of all sizes that the pipelines of a data set name."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _SIZES:
                yield from _areas(value)
            else:
                yield from _pixels(value)
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from _pixels(part)


def _areas(value: object) -> Iterator[int]:
    if type(value) is int:
        yield value * value
    elif isinstance(value, (list, tuple)) and [type(n) for n in value] == [int, int]:
        yield value[0] * value[1]
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _areas(part)
