"""How every tool ends: an error the user can mend as a sentence, all else with its traceback."""

import os
import re
import sys
from collections.abc import Callable

from cyclemlp_mm.errors import UserError

#: What gloo and NCCL say in a process whose partner is gone.
_PARTNER_GONE = re.compile(
    r'Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused|'
    r'Timed out waiting|NCCL.*(?:remote process|abort|timeout)', re.IGNORECASE
)  # fmt: skip


def run_tool(tool: 'Callable[[], object]') -> None:
    """Run a tool's function; on a :class:`UserError`, print its message and exit with 2.

    Of several processes, the one that failed says why; the others only that they stopped with it.
    Under torchrun, its traceback also stands in torchrun's summary.

    Args:
        tool (Callable): Takes no argument; reads the command line itself.
    """
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
        lines = str(error).strip().splitlines() or ['']
        _say(
            f'error: unexpected {type(error).__name__}: {lines[0]}. Where it happened is below; '
            'tools/check.py CONFIG and tools/doctor.py may say more'
        )
        raise


def _recorded(tool: 'Callable[[], object]') -> 'Callable[[], object]':
    if 'TORCHELASTIC_ERROR_FILE' not in os.environ:
        return tool
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(tool)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
