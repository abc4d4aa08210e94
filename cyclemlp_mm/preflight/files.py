"""Files of a data set: many looked at together, missing ones, and ones that are not read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from cyclemlp_mm.datasets.file_names import files_in, say_spelling
from cyclemlp_mm.datasets.image_files import split_images
from cyclemlp_mm.errors import count, some

from .findings import Report

#: How many files of a data set are looked at where not all are.
SAMPLED = 64


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
        if not (console.is_terminal and sys.stderr.isatty()):
            return list(results)
        return list(track(results, title, len(items), console=console, transient=True))


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
    there = files_in(folder) if folder.is_dir() else []
    cause = say_spelling(names, there)
    if not cause:
        by_name = {_last(file): file for file in there}
        moved = [(name, by_name[_last(name)]) for name in names if _last(name) in by_name]
        if moved:
            cause = (
                f'{len(moved)} of them are there in another folder, e.g. {moved[0][0]!a} is '
                f'{moved[0][1]!a}'
            )
    what = f'{len(names)} of {count(total, "image")} {lack}: {some(names)}'
    if cause:
        report.error(where, f'{what}; {cause}', 'Write the names of the files into the annotations')
    elif len(names) > allowed:
        report.error(
            where,
            what,
            'Check data_root and data_prefix, copy them, or take them out of the annotations',
        )
    else:
        report.warning(where, what, 'They are skipped in training; copy them, or take them out')


def report_passed_over(report: Report, folder: Path, others: Sequence[Path], suffixes: str) -> None:
    """Report files that a data set does not read, as their suffix is not one of its own."""
    images, _ = split_images(others)
    if others:
        (report.warning if images else report.note)(
            folder,
            f'{count(len(others), "file")} passed over, not ending in {suffixes}: '
            f'{some([path.name for path in others])}',
            f'{count(len(images), "file")} of them are images: convert or rename them, or change '
            'the suffixes that the data set reads (extensions, img_suffix)'
            if images
            else '',
        )


def _last(name: str) -> str:
    return name.replace('\\', '/').rpartition('/')[2]
