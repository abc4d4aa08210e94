"""How every tool ends: errors that the user can fix as a message, others with their traceback.

And what tools print: names of files and classes cannot control the terminal.
"""

import errno
import importlib
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from cyclemlp_mm.errors import CodeError, UserError

from .arguments import parser_of

#: What gloo and NCCL report in a process whose partner has ended. A refused connection or a timeout
#: may be the cause itself, so these keep their traceback.
_PARTNER_GONE = re.compile(
    r'gloo.*(?:closed by peer|reset by peer|Broken pipe)|NCCL.*(?:remote process|abort)',
    re.IGNORECASE | re.DOTALL,
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Control characters but newline and tab, marks that reverse the order of text, and surrogates.
_CONTROL = re.compile(
    r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)
#: mmengine's coloured levels.
_LEVEL = re.compile(r'((?:\x1b\[\d+m)+(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\x1b\[0m)')


def start(name: str) -> None:
    """Run ``tools/NAME.py``: :func:`run_tool` on the function NAME of the module of that name.

    The command line is parsed before torch is imported, which takes seconds.
    """
    guard_screen()
    parser_of(name).parse_args()
    run_tool(getattr(importlib.import_module(f'.{name}', __package__), name))


def run_tool(tool: Callable[[], object]) -> None:
    """Run a tool's function; on a :class:`UserError`, print its message and exit with 2.

    The same for a file or folder that the system refuses: read-only, no permission, a full disk.
    All else keeps its traceback, as does the code of a config's modules and models. Of several
    processes, those whose connection to an ended one broke print one line and no traceback.
    """
    from cyclemlp_mm.engine import no_teardown_under_gloo

    guard_screen()
    if 'TORCHELASTIC_ERROR_FILE' in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        tool = record(tool)
    with no_teardown_under_gloo():
        try:
            try:
                tempfile.gettempdir()  # reading a config takes one
            except FileNotFoundError as error:
                raise UserError(f'{error.strerror}: set TMPDIR to a folder with room') from error
            tool()
        except KeyboardInterrupt:
            _exit('interrupted', 130)
        except UserError as error:
            _print(f'error: {error}')
            if isinstance(error, CodeError):
                traceback.print_exception(error.__cause__)
            sys.exit(2)
        except Exception as error:
            _end_by(error)
            raise


def _end_by(error: Exception) -> None:
    """Exit where the error needs no traceback; else, print what to do."""
    first_line = (str(error).strip().splitlines() or [''])[0]
    several = int(os.environ.get('WORLD_SIZE', 1)) > 1
    if several and isinstance(error, RuntimeError) and _PARTNER_GONE.search(str(error)):
        what = f'its connection to another process of this run broke ({first_line})'
        why = 'the output of the process that ended first; without one, it was killed (memory?)'
        _print(f'process {os.environ.get("RANK")}: stopped: {what}. The cause is in {why}')
        os._exit(1)  # waits for no partner
    number, name = getattr(error, 'errno', None), getattr(error, 'filename', None)
    if isinstance(error, OSError) and number in _DISK_FULL:
        where = f' ({name})' if name else ''
        _exit(f'error: {os.strerror(number)}{where}: make room, or write to another disk', 2)
    if isinstance(error, OSError) and number and isinstance(name, (str, os.PathLike)):
        what = f'{name} cannot be read or written ({error.strerror})'
        _exit(f'error: {what}: fix that, or name another place', 2)
    what = f'error: unexpected {type(error).__name__}: {first_line}. The traceback is below;'
    fix = 'tools/check.py CONFIG and tools/doctor.py may find the cause'
    _print(f'{what} {fix}')


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _exit(text: str, code: int) -> None:
    _print(text)
    sys.exit(code)


def show(text: str) -> str:
    r"""Text with control characters as ``\x1b`` and the like."""
    return _CONTROL.sub(lambda m: m[0].encode('unicode_escape', 'surrogatepass').decode(), text)


def guard_screen() -> None:
    """Escape control characters in all that this process prints or logs from here on."""
    logging.setLogRecordFactory(_Record)
    sys.stdout, sys.stderr = _Screen(sys.stdout), _Screen(sys.stderr)


@contextmanager
def track(items: Iterable, text: str, total: int | None = None) -> Iterator[Iterable]:
    """``items`` with a progress bar on the stream below the guarded one: it moves the cursor."""
    from rich import progress
    from rich.console import Console

    console = Console(file=getattr(sys.stderr, 'raw', sys.stderr))
    columns = *progress.Progress.get_default_columns(), progress.MofNCompleteColumn()
    with progress.Progress(*columns, console=console) as bar:
        yield bar.track(items, total, description=text)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return show(super().getMessage())


class _Screen:
    """A stream that escapes; on a full disk it drops text, as there is nowhere to report it."""

    def __init__(self, stream: TextIO) -> None:
        #: The stream below, for progress bars: they move the cursor.
        self.raw = stream.raw if isinstance(stream, _Screen) else stream

    def write(self, text: str) -> int:
        """Write; a carriage return at either end is a progress bar's."""
        body = text.strip('\r')
        start, _, end = text.partition(body) if body else (text, '', '')
        parts = _LEVEL.split(body.replace('\r\n', '\n'))  # every second one is a level
        parts[::2] = map(show, parts[::2])
        self._try(self.raw.write, start + ''.join(parts) + end)
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._try(self.raw.flush)

    def _try(self, method: Callable, *arguments: str) -> None:
        try:
            method(*arguments)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise

    def __getattr__(self, name: str) -> object:
        return getattr(self.raw, name)
