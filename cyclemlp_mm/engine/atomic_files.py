"""Files that are there whole or not at all, whatever ends the process while they are written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

#: Beginning of the names of files that are being written; what a kill left behind has it too.
PARTIAL = '.partial-'
_OWN_NAME = re.compile(rf'{re.escape(PARTIAL)}\d+-.+', re.DOTALL)


def write_atomically(content: bytes, path: str | Path) -> None:
    """Write a file so that its name means the old content or the new one, never a part.

    The bytes go into a file beside it, and to the disk, before it gets the name. A file system that
    does so (all local ones on Linux, NFS) keeps that through a power cut too.

    Args:
        content (bytes): All of the file.
        path (str | Path): Where to; the folder is made if needed.

    Raises:
        OSError: No space, no permission, …; ``path`` is as it was, and nothing is left beside it.
    """
    with written_beside(path) as partial:
        partial.write_bytes(content)


@contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """As :func:`write_atomically`, where something else writes.

    Args:
        path (str | Path): Where the file is to go; the folder is made if needed.

    Yields:
        Path: The file to write in the block, which gets its name when the block is done.

    Raises:
        OSError: As :func:`write_atomically`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{PARTIAL}{os.getpid()}-{path.name}')
    try:
        yield partial
        _sync(partial, os.O_RDWR)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    with suppress(OSError):  # not every file system can do that
        _sync(path.parent, os.O_RDONLY)


def remove_partial_files(folder: str | Path) -> list[str]:
    """Remove what killed processes left in a folder; returns the names.

    Files of other processes that run on this machine are left to them.
    """
    left = [
        path
        for path in Path(folder).glob(f'{PARTIAL}*')
        if _OWN_NAME.fullmatch(path.name) and path.is_file() and not _is_being_written(path)
    ]
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]


def _is_being_written(path: Path) -> bool:
    """Whether another process that is alive began the file."""
    number = path.name[len(PARTIAL) :].split('-')[0]
    if os.name != 'posix' or not number.isdigit() or int(number) in (0, os.getpid()):
        return False
    try:
        os.kill(int(number), 0)  # sends nothing
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _sync(path: Path, mode: int) -> None:
    """What was written of a file, or the names of a folder, to the disk."""
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, with :func:`write_atomically`.

    Taken by ``backend_args=dict(backend='atomic')``.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes to a file."""
        write_atomically(obj, filepath)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file."""
        write_atomically(obj.encode(encoding), filepath)


register_backend('atomic', AtomicLocalBackend, force=True)
