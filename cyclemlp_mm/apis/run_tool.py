"""How every tool ends: errors that the user can fix as a message, others with their traceback."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable

from cyclemlp_mm.errors import CodeError, UserError

from .arguments import parser_of
from .screen import DISK_FULL, guard_screen

#: What gloo and NCCL report in a process whose partner has ended. A refused connection or a timeout
#: may be the cause itself, so these keep their traceback.
_PARTNER_GONE = re.compile(
    r'gloo.*(?:closed by peer|reset by peer|Broken pipe)|NCCL.*(?:remote process|abort)',
    re.IGNORECASE | re.DOTALL,
)


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
    with no_teardown_under_gloo():
        try:
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
    if isinstance(error, OSError) and number in DISK_FULL:
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
