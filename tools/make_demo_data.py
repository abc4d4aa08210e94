#!/usr/bin/env python
"""Write a data set of coloured shapes, in the layout of COCO 2017, ADE20K or ImageNet."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cyclemlp_mm.apis.arguments import Parser
from cyclemlp_mm.apis.run_tool import run_tool

EXAMPLES = """\
  # 400 + 100 images of 128 x 128 pixels for detection and instance segmentation
  tools/make_demo_data.py coco data/shapes_coco

  # the same images for semantic segmentation
  tools/make_demo_data.py ade20k data/shapes_ade20k

  # images of one shape each for classification, a folder per class (or 'lists': text files)
  tools/make_demo_data.py folders data/shapes_by_class --size 64 64

  # few and small ones, for a quick try
  tools/make_demo_data.py coco data/tiny --num-train 8 --num-val 4 --size 64 48 --seed 1
"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument(
        'layout', choices=['ade20k', 'coco', 'folders', 'lists'], help='layout of the data set'
    )
    parser.add_argument(
        'out_dir',
        help='folder to write to: new, empty, or with the same data '
        'set, which is then kept as it is',
    )
    parser.add_argument(
        '--num-train',
        type=int,
        default=400,
        metavar='N',
        help='number of training images (default: %(default)s)',
    )
    parser.add_argument(
        '--num-val',
        type=int,
        default=100,
        metavar='N',
        help='number of validation images (default: %(default)s)',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(128, 128),
        metavar=('WIDTH', 'HEIGHT'),
        help='size of the images, at least 32 32 (default: 128 128)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='the same seed gives the same images (default: %(default)s)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool.

    Args:
        argv (Sequence[str], optional): Arguments. Default: the process's own.

    Raises:
        UserError: If an argument or the folder cannot be used.
    """
    args = parse(argv)
    from cyclemlp_mm.datasets import shapes  # slow to import, and not needed for --help

    write = {
        'coco': shapes.write_coco,
        'ade20k': shapes.write_ade20k,
        'folders': shapes.write_image_folders,
        'lists': shapes.write_image_lists,
    }[args.layout]
    folder = write(args.out_dir, args.num_train, args.num_val, args.size, args.seed)
    print(f'{folder}: {args.num_train} training and {args.num_val} validation images')


if __name__ == '__main__':
    parse()
    run_tool(main)
