"""One training at a time in a work dir."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cyclemlp_mm.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

#: Name of the file that a training locks in its work dir.
LOCK = '.training-lock'


@contextmanager
def work_dir_lock(work_dir: str | Path) -> Iterator[None]:
    """Keep other trainings out of a work dir while the block runs.

    The lock is the operating system's, of this process alone: it goes with the process however that
    ends, a kill included, and the processes that load data do not hold it. Where the system or the
    file system has no such lock, nothing is kept out.

    Args:
        work_dir (str | Path): Made if needed.

    Raises:
        UserError: Another training has it; says which process, where, since when. Or the file is a
            link or a folder.
    """
    path = Path(work_dir) / LOCK
    descriptor = None if fcntl is None else _take(path)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()  # before others can lock it
            os.close(descriptor)


def _take(path: Path) -> int | None:
    """The locked file, or None where there is no locking."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError:
            if os.path.lexists(path):
                _check_regular(path)
            return None  # the training itself says that it cannot write here
        try:
            # Not flock: that one's children hold it too, and outlive a killed training by seconds.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_regular(path)
            if os.fstat(descriptor).st_nlink > 1:  # `cp -l`: what is written would appear elsewhere
                path.unlink()
            elif _is_file(descriptor, path):
                _sign(descriptor)
                return descriptor
        except OSError as error:
            owner = os.pread(descriptor, 500, 0).decode(errors='replace').strip()
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return None
            raise UserError(
                f'another training writes into the work dir {path.parent} '
                f"({owner or 'its process is not known'}), and two would overwrite each other's "
                'checkpoints. Wait for it, end it, or take another --work-dir'
            ) from error
        os.close(descriptor)  # the one that had it has just ended and removed it


def _check_regular(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(
            f'{path} is a link, a folder or a pipe, and must be a file of the training itself: '
            'remove it, or take another --work-dir'
        )


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    started = time.strftime('%Y-%m-%d %H:%M:%S')
    owner = f'process {os.getpid()} on {socket.gethostname()}, since {started}'
    with suppress(OSError):  # a full disk; the lock holds without
        os.ftruncate(descriptor, 0)
        os.write(descriptor, owner.encode())
