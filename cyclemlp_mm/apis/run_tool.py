"""How every tool ends: an error the user can mend as a sentence, all else with its traceback."""

import errno
import os
import re
import sys
from collections.abc import Callable

from cyclemlp_mm.engine import no_teardown_under_gloo
from cyclemlp_mm.errors import UserError

from .screen import guard_screen

#: What gloo and NCCL say in a process whose partner is gone.
_PARTNER_GONE = re.compile(
    r'Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused|'
    r'Timed out waiting|NCCL.*(?:remote process|abort|timeout)', re.IGNORECASE
)  # fmt: skip


#: What names no file, but is no defect either: a full disk, or a quota that is used up.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_tool(tool: 'Callable[[], object]') -> None:
    """Run a tool's function; on a :class:`UserError`, print its message and exit with 2.

    So does a file or folder that the system refuses: read-only, no permission, a full disk.
    Of several processes, the one that failed says why; the others only that they stopped with it.
    Under torchrun, its traceback also stands in torchrun's summary.

    Args:
        tool (Callable): Takes no argument; reads the command line itself.
    """
    guard_screen()
    with no_teardown_under_gloo():
        _run(tool)


def _run(tool: 'Callable[[], object]') -> None:
    try:
        _recorded(tool)()
    except UserError as error:
        _say(f'error: {error}')
        sys.exit(2)
    except KeyboardInterrupt:
        _say('interrupted')
        sys.exit(130)
    except Exception as error:
        if int(os.environ.get('WORLD_SIZE', 1)) > 1 and _PARTNER_GONE.search(str(error)):
            _say(
                f'process {os.environ.get("RANK")}: stopped, because another process of this run '
                'ended; that one says why'
            )
            sys.stderr.flush()
            os._exit(1)  # waits for no partner
        refused = _refused_file(error)
        if refused:
            _say(f'error: {refused}')
            sys.exit(2)
        lines = str(error).strip().splitlines() or ['']
        _say(
            f'error: unexpected {type(error).__name__}: {lines[0]}. Where it happened is below; '
            'tools/check.py CONFIG and tools/doctor.py may say more'
        )
        raise


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
        f'{error.filename} cannot be read or written ({error.strerror}): mend that, or name '
        'another place'
    )


def _recorded(tool: 'Callable[[], object]') -> 'Callable[[], object]':
    if 'TORCHELASTIC_ERROR_FILE' not in os.environ:
        return tool
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(tool)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
