"""CLI entry point of tools/check.py."""

from collections.abc import Sequence

from cyclemlp_mm.datasets.coco_file import annotations_kept
from cyclemlp_mm.errors import UserError, count
from cyclemlp_mm.preflight import Report, run_preflight

from .arguments import parse
from .prepare import prepare_config


def check(argv: Sequence[str] | None = None) -> Report:
    """Check data, config and machine without training; print all, raise if there are errors."""
    args = parse('check', argv)
    with annotations_kept():
        report = run_preflight(prepare_config(args), args.full)
    print(report)
    if errors := report.of('error'):
        raise UserError(f'{count(len(errors), "error")} found (see above)')
    return report
