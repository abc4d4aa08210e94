"""How every tool ends: an error the user can fix as a sentence, all else with its traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable

from cyclemlp_mm.engine import no_teardown_under_gloo
from cyclemlp_mm.errors import CodeError, UserError

from .screen import guard_screen

#: What gloo and NCCL report in a process whose partner has ended. A refused connection or a timeout
#: may be the cause itself, so these keep their traceback.
_PARTNER_GONE = re.compile(
    r'gloo.*(?:closed by peer|reset by peer|Broken pipe)|NCCL.*(?:remote process|abort)',
    re.IGNORECASE | re.DOTALL,
)

#: What names no file, but is no defect either: a full disk, or a quota that is used up.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_tool(tool: Callable[[], object]) -> None:
    """Run a tool's function; on a :class:`UserError`, print its message and exit with 2.

    So does a file or folder that the system refuses: read-only, no permission, a full disk.
    All else keeps its traceback, as does the code of a config's modules and models. Of several
    processes, those whose connection to an ended one broke print one line and no traceback.

    Args:
        tool (Callable): Takes no argument; reads the command line itself.
    """
    guard_screen()
    with no_teardown_under_gloo():
        _run(tool)


def _run(tool: Callable[[], object]) -> None:
    try:
        _check_temporary_folder()
        _recorded(tool)()
    except UserError as error:
        _say(f'error: {error}')
        if isinstance(error, CodeError):
            traceback.print_exception(error.__cause__)
        sys.exit(2)
    except KeyboardInterrupt:
        _say('interrupted')
        sys.exit(130)
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [''])[0]
        is_of_torch = isinstance(error, RuntimeError)
        if (
            is_of_torch
            and int(os.environ.get('WORLD_SIZE', 1)) > 1
            and _PARTNER_GONE.search(str(error))
        ):
            _say(
                f'process {os.environ.get("RANK")}: stopped, because its connection to another '
                f'process of this run broke ({first_line}). The cause is in the output of the '
                'process that ended first; one without output was killed (out of memory?)'
            )
            sys.stderr.flush()
            os._exit(1)  # waits for no partner
        refused = _refused_file(error)
        if refused:
            _say(f'error: {refused}')
            sys.exit(2)
        _say(
            f'error: unexpected {type(error).__name__}: {first_line}. The traceback is below; '
            'tools/check.py CONFIG and tools/doctor.py may find the cause'
        )
        raise


def _check_temporary_folder() -> None:
    """Reading a config takes one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(f'{error.strerror}: set TMPDIR to a folder with room') from error


def _refused_file(error: Exception) -> str:
    """A sentence for an ``OSError`` about a file, '' for all else."""
    if not isinstance(error, OSError) or error.errno is None:
        return ''
    if error.errno in _DISK_FULL:
        where = f' ({error.filename})' if error.filename else ''
        return f'{os.strerror(error.errno)}{where}: make room, or write to another disk'
    if not isinstance(error.filename, (str, os.PathLike)):
        return ''
    return (
        f'{error.filename} cannot be read or written ({error.strerror}): fix that, or name '
        'another place'
    )


def _recorded(tool: Callable[[], object]) -> Callable[[], object]:
    if 'TORCHELASTIC_ERROR_FILE' not in os.environ:
        return tool
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(tool)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
