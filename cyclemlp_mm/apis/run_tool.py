"""How every tool ends: an error the user can mend as a sentence, all else with its traceback."""

import sys
from collections.abc import Callable

from cyclemlp_mm.errors import UserError


def run_tool(tool: 'Callable[[], object]') -> None:
    """Run a tool's function; on a :class:`UserError`, print its message and exit with 2.

    Args:
        tool (Callable): Takes no argument; reads the command line itself.
    """
    try:
        tool()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
