#!/usr/bin/env python
"""Write docs/model_zoo.md from the metafiles of model-index.yml."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from cyclemlp_mm.apis.arguments import Parser
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.errors import MissingFileError, UserError

EXAMPLES = """\
  tools/model_zoo.py                  # write docs/model_zoo.md
  tools/model_zoo.py --check          # only report whether it is up to date
  tools/model_zoo.py --measure        # first count parameters and FLOPs of every config
  tools/model_zoo.py --latency work_dirs/latency/benchmark.json
"""
LATENCY_HELP = 'draw accuracy against latency from what tools/benchmark.py measured, and keep it'


def model_zoo(argv: Sequence[str] | None = None) -> bool:
    """Write the page as the command line says, and return whether it was out of date.

    Raises a UserError if a metafile is wrong, this is not a checkout, or, with ``--check``, the
    page is out of date.
    """
    args = _parse_args(argv)
    # Slow to import, and not needed for --help.
    from cyclemlp_mm.engine import configs_dir
    from model_zoo_pages.figure import draw, read_latencies
    from model_zoo_pages.metafiles import read_collections, write_measured
    from model_zoo_pages.pages import FIGURE, LATENCY, model_zoo_page

    root = args.root or configs_dir().parent
    docs = root / 'docs'
    for path in (docs, root / 'model-index.yml'):
        if not path.exists():
            what = f'{path} does not exist: tools/model_zoo.py works in a checkout of the project'
            raise MissingFileError(what)
    collections = read_collections(root)
    if args.measure:
        for name in [n for collection in collections for n in write_measured(collection, root)]:
            print(f'measured  {name}')
        collections = read_collections(root)
    if args.latency is not None:
        print(f'drawn     {draw(read_latencies(args.latency), collections, docs / FIGURE)}')
        target = docs / LATENCY
        if args.latency.resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(args.latency, target)
    page, text = docs / 'model_zoo.md', model_zoo_page(collections, docs)
    if page.is_file() and page.read_text('utf-8') == text:
        print('docs/model_zoo.md is up to date')
        return False
    if args.check:
        raise UserError('docs/model_zoo.md differs from the metafiles: run tools/model_zoo.py')
    page.write_text(text, encoding='utf-8')
    print(f'written   {page}')
    return True


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    group = parser.add_mutually_exclusive_group()
    check = 'write nothing; exit with 2 if the page is not up to date'
    group.add_argument('--check', action='store_true', help=check)
    measure = 'count parameters and FLOPs of every config, and write them into the metafiles'
    group.add_argument('--measure', action='store_true', help=measure)
    group.add_argument('--latency', type=Path, metavar='BENCHMARK.json', help=LATENCY_HELP)
    parser.add_argument('--root', type=Path, help='the checkout (default: the one of this package)')
    return parser.parse_args(argv)


if __name__ == '__main__':
    _parse_args(None)
    run_tool(model_zoo)
