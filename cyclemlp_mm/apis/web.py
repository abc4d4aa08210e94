"""The web demo: the whole of ``tools/web.py`` but its first line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cyclemlp_mm.checks import check_device
from cyclemlp_mm.errors import MissingToolboxError, UserError

from .arguments import add_unsafe_load, new_parser

EXAMPLES = """\
  tools/web.py                                  # the model of `make demo`, all others to choose
  tools/web.py --model work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth --port 8000
"""


def parse_web_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of ``tools/web.py``."""
    parser = new_parser('Serve a page that predicts images dropped on it', EXAMPLES)
    parser.add_argument(
        '--model',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a model to offer, the first one is chosen; may be repeated',
    )
    parser.add_argument(
        '--work-dirs',
        metavar='DIR',
        default='work_dirs',
        help='offer every trained model in its folders (default: %(default)s)',
    )
    add_unsafe_load(parser)
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: a GPU if there is one)')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on; 0.0.0.0 lets other machines in, without a password '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--allow-host',
        action='append',
        default=[],
        metavar='NAME',
        help='another name by which browsers reach the page; may be repeated (default: addresses '
        'in numbers, localhost and the name of this machine)',
    )
    parser.add_argument('--port', type=int, default=7860, help='default: %(default)s')
    parser.add_argument(
        '--max-mb',
        type=float,
        default=20,
        metavar='MB',
        help='largest file that is taken (default: %(default)s)',
    )
    return parser.parse_args(argv)


def web(argv: Sequence[str] | None = None) -> None:
    """Serve as the command line says, until it is stopped.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Raises:
        UserError: With what is wrong and how to fix it.
    """
    args = parse_web_args(argv)
    if args.max_mb <= 0:
        raise UserError(f'--max-mb must be above 0, but got {args.max_mb:g}')
    if not 1 <= args.port <= 65535:
        raise UserError(f'--port must be 1 to 65535, but got {args.port}')
    # Slow to import, and not needed for --help.
    from cyclemlp_mm.web import UploadLimits, Workbench, find_models

    workbench = Workbench(find_models(args.work_dirs, args.model), check_device(args.device))
    try:
        from cyclemlp_mm.web.page import build_page, launch
    except ImportError as error:
        raise MissingToolboxError(
            f'the page needs Gradio, which cannot be imported ({error}): in a checkout, `make web` '
            "installs it; elsewhere, `pip install 'cyclemlp_mm[web]'`"
        ) from error
    limits = UploadLimits(megabytes=args.max_mb)
    page = build_page(workbench, limits)
    launch(page, limits, args.host, args.port, names=args.allow_host)
