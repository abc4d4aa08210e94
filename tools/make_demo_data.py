#!/usr/bin/env python
"""Write a data set of coloured shapes, in the layout of COCO 2017, ADE20K or ImageNet."""

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
#: Layout, and the function of cyclemlp_mm.datasets.shapes that writes it.
LAYOUTS = {'ade20k': 'write_ade20k', 'coco': 'write_coco'}
LAYOUTS |= {'folders': 'write_image_folders', 'lists': 'write_image_lists'}


def _number(default: int, text: str) -> dict:
    return dict(type=int, default=default, metavar='N', help=f'{text} (default: {default})')


OPTIONS = {
    'layout': dict(choices=LAYOUTS, help='layout of the data set'),
    'out_dir': dict(help='new or empty folder; if it has the same data set, nothing is written'),
    '--num-train': _number(400, 'number of training images'),
    '--num-val': _number(100, 'number of validation images'),
    '--size': dict(
        type=int,
        nargs=2,
        default=(128, 128),
        metavar=('WIDTH', 'HEIGHT'),
        help='size of the images, at least 32 32 (default: 128 128)',
    ),
    '--seed': _number(0, 'the same seed gives the same images'),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return Parser(__doc__, EXAMPLES, OPTIONS).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool; raises a UserError if an argument or the folder cannot be used."""
    args = parse(argv)
    from cyclemlp_mm.datasets import shapes  # slow to import, and not needed for --help

    write = getattr(shapes, LAYOUTS[args.layout])
    folder = write(args.out_dir, args.num_train, args.num_val, args.size, args.seed)
    print(f'{folder}: {args.num_train} training and {args.num_val} validation images')


if __name__ == '__main__':
    parse()
    run_tool(main)
