"""Files of a work dir: complete or absent whatever ends the process, and of one training only."""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.fileio import LocalBackend, register_backend

from cyclemlp_mm.errors import UserError

#: Beginning of the names of files that are being written; a killed process leaves them behind.
PARTIAL = '.partial-'
_PARTIAL_NAME = re.compile(rf'{re.escape(PARTIAL)}(\d+)-.+', re.DOTALL)
#: Name of the file that a training locks in its work dir.
LOCK = '.training-lock'


def write_atomically(content: bytes, path: str | Path) -> None:
    """Write a file whose name always means the complete old content or the complete new one.

    On file systems with atomic renames (all local ones on Linux, NFS) also through a power cut.
    After an OSError, ``path`` is unchanged, and no other file is left.
    """
    with atomic_file(path) as partial:
        partial.write_bytes(content)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the name of a file to write, which replaces ``path`` at the end of the block."""
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
    with suppress(OSError):  # some file systems cannot sync a folder
        _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: str | Path) -> list[str]:
    """Remove files that ended processes left half written, and return their names."""
    removed = []
    for path in Path(folder).glob(f'{PARTIAL}*'):
        match = _PARTIAL_NAME.fullmatch(path.name)
        if match and path.is_file() and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _is_running(number: int) -> bool:
    """Whether that is the number of another process of this machine."""
    if os.name != 'posix' or number in (0, os.getpid()):
        return False
    try:
        os.kill(number, 0)  # sends nothing
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, with :func:`write_atomically`; named ``atomic``."""

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        write_atomically(obj, filepath)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        write_atomically(obj.encode(encoding), filepath)


register_backend('atomic', AtomicLocalBackend, force=True)


@contextmanager
def work_dir_lock(work_dir: str | Path) -> Iterator[None]:
    """Keep other trainings out of a work dir, which is made if needed, while the block runs.

    The operating system releases the lock when the process ends, killed or not; with filelock 3,
    when its workers have ended, too. Where the file system has no locks, nothing is kept out.
    Raises UserError where another training has it, or where the lock file is a link or no regular
    file.
    """
    path = Path(work_dir) / LOCK
    # No fallback to a lock that would stay after a kill. A second: the other one may just end.
    options = {'fallback_to_soft': False}
    if not options.keys() & signature(FileLock).parameters:  # filelock 3 has no such fallback
        options = {}
    lock = FileLock(path, timeout=1, **options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The lock empties the file: it must not be another file's name.
        is_own = path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
        if os.path.lexists(path) and not is_own:
            raise UserError(
                f'{path} is a link, a folder or a pipe: remove it, or take another --work-dir'
            )
        lock.acquire()
    except Timeout as error:
        owner = ''
        with suppress(OSError):
            owner = path.read_bytes()[:500].decode(errors='replace').strip()
        raise UserError(
            f'another training writes into the work dir {path.parent} '
            f'({owner or "its process is not known"}). Wait for it, or take another --work-dir'
        ) from error
    except (OSError, NotImplementedError):  # the second is filelock 3's, where there are no locks
        pass  # the training itself reports a folder that cannot be written
    if lock.is_locked:
        with suppress(OSError):  # a full disk
            started = time.strftime('%Y-%m-%d %H:%M:%S')
            path.write_text(f'process {os.getpid()} on {socket.gethostname()}, since {started}')
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()  # before others can lock it
            lock.release()
