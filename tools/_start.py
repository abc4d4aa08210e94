"""Reads a tool's command line with argparse alone: importing torch takes seconds."""

import importlib
import runpy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

_package = find_spec('cyclemlp_mm') or importlib.import_module('cyclemlp_mm').__spec__
#: ``cyclemlp_mm.apis.arguments``, without what ``import cyclemlp_mm`` brings in.
arguments = SimpleNamespace(
    **runpy.run_path(str(Path(_package.origin).parent / 'apis' / 'arguments.py'))
)


def start(tool: str) -> None:
    """Run ``cyclemlp_mm.apis.TOOL`` with the process's own arguments.

    Args:
        tool (str): Name of the module and of its function.
    """
    arguments.parser_of(tool).parse_args()  # --help and mistakes end here
    from cyclemlp_mm.apis.run_tool import run_tool

    run_tool(getattr(importlib.import_module(f'cyclemlp_mm.apis.{tool}'), tool))
