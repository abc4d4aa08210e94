"""The check before a training, on its own: the whole of ``tools/check.py`` but its first line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cyclemlp_mm.datasets.coco_file import annotations_kept
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.preflight import Report, run_preflight

from .arguments import add_config, add_launcher, add_own_data, add_unsafe_load, new_parser
from .prepare import prepare_config

EXAMPLES = """\
  tools/check.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py --data my_cells
  tools/check.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py --data my_streets --full
"""


def parse_check_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of ``tools/check.py``."""
    parser = new_parser(
        'Look for what is wrong with data, config and machine, without training', EXAMPLES
    )
    add_config(parser)
    parser.add_argument(
        '--full', action='store_true', help='look at every image and label, not at a sample'
    )
    add_own_data(parser)
    add_unsafe_load(parser)
    add_launcher(parser)
    return parser.parse_args(argv)


def check(argv: Sequence[str] | None = None) -> Report:
    """Check as the command line says, and print what was found.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Raises:
        UserError: There are errors.
    """
    args = parse_check_args(argv)
    with annotations_kept():
        report = run_preflight(prepare_config(args), args.full)
    print(report)
    errors = report.of('error')
    if errors:
        raise UserError(f'training would fail or be wrong: {len(errors)} of the lines above')
    return report
