"""CLI entry point of tools/web.py."""

from collections.abc import Sequence

from cyclemlp_mm.checks import check_device
from cyclemlp_mm.errors import MissingToolboxError
from cyclemlp_mm.web import UploadLimits, Workbench, find_examples, find_models

from .arguments import parse


def web(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    args = parse('web', argv)
    workbench = Workbench(find_models(args.work_dirs, args.model), check_device(args.device))
    try:
        from cyclemlp_mm.web.page import build_page, launch
    except ImportError as error:
        what = f'the page needs Gradio, which cannot be imported ({error})'
        fix = "in a checkout, `make web` installs it; elsewhere, `pip install 'cyclemlp_mm[web]'`"
        raise MissingToolboxError(f'{what}: {fix}') from error
    limits = UploadLimits(megabytes=args.max_mb)
    page = build_page(workbench, limits, find_examples(args.work_dirs))
    launch(page, limits, args.host, args.port, names=args.allow_host)
