"""``tools/get_flops.py``: how large a backbone or a whole model is, and what an image costs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import nn

from cyclemlp_mm.analysis.counting import backbone_multiply_adds
from cyclemlp_mm.analysis.whole_model import SIZES, build_on_meta, count_parameters, count_parts
from cyclemlp_mm.checks import model_errors
from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.registration import BACKBONES

from .arguments import add_cfg_options, new_parser

EXAMPLES = """\
  tools/get_flops.py --arch b1                                      # at 224 x 224
  tools/get_flops.py --arch b2 --size 800 1280
  tools/get_flops.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py
  tools/get_flops.py mask_rcnn_cyclemlp_b2_fpn_1x_coco --size 800 1216 --json
"""


def get_flops(argv: Sequence[str] | None = None) -> dict:
    """Count as the command line says, and print the counts.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Returns:
        dict: What was printed: 'model', 'size', 'parameters', 'multiply_adds' and their 'parts'.

    Raises:
        UserError: With what is wrong; also where an operator cannot be counted.
    """
    args = _parse_args(argv)
    found = _count_config(args) if args.config is not None else _count_backbone(args)
    if args.json:
        print(json.dumps(found, indent=1))
        return found
    height, width = found['size']
    print(f'{found["model"]} at {height} x {width}')
    print(f'  parameters           {found["parameters"] / 1e6:8.2f} M')
    print(f'  multiply-adds        {found["multiply_adds"] / 1e9:8.2f} G')
    for part, count in found['parts'].items():
        print(f'    {part:<18} {count / 1e9:8.2f} G')
    return found


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(
        'Count the parameters of a backbone or of a whole model, and the multiply-adds of one '
        'image, which papers call FLOPs; an operator that cannot be counted is an error',
        EXAMPLES,
    )
    parser.add_argument('config', nargs='?', help='config file, or the name of a shipped config')
    parser.add_argument('--arch', metavar='NAME', help='a backbone alone, in place of CONFIG')
    parser.add_argument(
        '--backbone', default='CycleMLP', metavar='CLASS', help='of --arch (default: %(default)s)'
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the image (default: 224 224 for backbones and classifiers, 800 1280 for '
        'detectors, 512 512 for segmentors)',
    )
    parser.add_argument('--json', action='store_true', help='print the exact counts as json')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if (args.config is None) == (args.arch is None):
        parser.error('give either CONFIG or --arch')
    if args.size is not None and min(args.size) < 32:
        parser.error(f'--size must be at least 32 32, but got {args.size[0]} {args.size[1]}')
    return args


def _count_config(args: argparse.Namespace) -> dict:
    cfg = load_config(args.config, args.cfg_options)
    size = tuple(args.size or SIZES[require_toolbox(cfg)])
    with model_errors(args.config):
        model = build_on_meta(cfg)
    parts = count_parts(model, size)
    return _result(args.config, size, model, parts)


def _count_backbone(args: argparse.Namespace) -> dict:
    size = tuple(args.size or SIZES['mmpretrain'])
    if args.backbone not in BACKBONES:
        raise UserError(f'--backbone {args.backbone}: it must be one of {", ".join(BACKBONES)}')
    with torch.device('meta'):
        try:
            backbone = MODELS.build(dict(type=args.backbone, arch=args.arch)).eval()
        except ValueError as error:  # the family names its archs
            raise UserError(f'--arch {args.arch}: {error}') from error
    parts = dict(backbone=backbone_multiply_adds(backbone, (1, 3, *size)))
    return _result(f'{args.backbone} {args.arch}', size, backbone, parts)


def _result(name: str, size: tuple[int, int], model: nn.Module, parts: dict[str, int]) -> dict:
    return dict(
        model=name,
        size=list(size),
        parameters=count_parameters(model),
        multiply_adds=sum(parts.values()),
        parts=parts,
    )
