#!/usr/bin/env python
"""``tools/model_zoo.py``: pages from metafiles, figures into metafiles, for a checkout."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from cyclemlp_mm.apis.arguments import Parser
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.errors import MissingFileError, UserError

EXAMPLES = """\
  tools/model_zoo.py                  # write docs/model_zoo.md and the tables of README.md
  tools/model_zoo.py --check          # only say whether they are up to date
  tools/model_zoo.py --measure        # first count parameters and FLOPs of every config
  tools/model_zoo.py --latency work_dirs/latency/benchmark.json
"""


def model_zoo(argv: Sequence[str] | None = None) -> list[Path]:
    """Write the pages as the command line says, and return those that were out of date.

    Raises:
        UserError: A metafile is wrong, this is no checkout, or, with ``--check``, a page is out of
            date.
    """
    args = _parse_args(argv)
    # Slow to import, and not needed for --help.
    from cyclemlp_mm.engine import configs_dir
    from model_zoo_pages.figure import draw, read_latencies
    from model_zoo_pages.metafiles import read_collections, write_measured
    from model_zoo_pages.pages import FIGURE, LATENCY, model_zoo_page, put_block, readme_block

    root = args.root or configs_dir().parent
    for name in ('README.md', 'docs', 'model-index.yml'):
        if not (root / name).exists():
            raise MissingFileError(
                f'{root} holds no {name}: tools/model_zoo.py works in a checkout of the project'
            )
    collections = read_collections(root)
    if args.measure:
        for collection in collections:
            for name in write_measured(collection, root):
                print(f'measured  {name}')
        collections = read_collections(root)
    if args.latency is not None:
        content = read_latencies(args.latency)
        print(f'drawn     {draw(content, collections, root / "docs" / FIGURE)}')
        target = root / 'docs' / LATENCY
        if args.latency.resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(args.latency, target)
    readme = root / 'README.md'
    pages = {
        root / 'docs' / 'model_zoo.md': model_zoo_page(collections, root / 'docs'),
        readme: put_block(readme.read_text(encoding='utf-8'), readme_block(collections)),
    }
    stale = [
        path
        for path, text in pages.items()
        if not path.is_file() or path.read_text(encoding='utf-8') != text
    ]
    if args.check and stale:
        names = ', '.join(path.relative_to(root).as_posix() for path in stale)
        raise UserError(f'{names} differ from the metafiles: run tools/model_zoo.py')
    for path in stale:
        path.write_text(pages[path], encoding='utf-8')
        print(f'written   {path}')
    if not stale:
        print('docs/model_zoo.md and README.md are up to date')
    return stale


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        'Write docs/model_zoo.md and the tables of README.md from the metafiles that '
        'model-index.yml names',
        EXAMPLES,
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit with 2 where a page is not up to date',
    )
    group.add_argument(
        '--measure',
        action='store_true',
        help='count parameters and FLOPs of every config, and put them into the metafiles',
    )
    group.add_argument(
        '--latency',
        type=Path,
        metavar='BENCHMARK.json',
        help='draw accuracy against latency from what tools/benchmark.py measured, and keep it',
    )
    parser.add_argument('--root', type=Path, help='the checkout (default: the one of this package)')
    return parser.parse_args(argv)


if __name__ == '__main__':
    _parse_args(None)
    run_tool(model_zoo)
