#!/usr/bin/env python
"""Measure the speed against the published form and torchvision's backbones."""

import argparse
import re
from pathlib import Path

from cyclemlp_mm.apis.arguments import DEPLOY, Parser
from cyclemlp_mm.apis.run_tool import run_tool

EXAMPLES = """\
  tools/benchmark.py --arch b1 b2 --size 4x224x224 1x512x512 1x800x1216
  tools/benchmark.py --arch b2 --size 1x800x1216 --rivals resnet50 swin_t convnext_t
  tools/benchmark.py --config retinanet_cyclemlp_b1_fpn_1x_coco --size 2x512x512 --mode train
  tools/benchmark.py --arch mpvit_small b2 --size 1x800x1216 --deploy
  tools/benchmark.py --arch b2 --size 8x800x1216 --mode train --dtype amp --device cuda \\
      --backend triton"""
DTYPES = ('float32', 'bfloat16', 'float16', 'amp')


def _size(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r'\d+x\d+x\d+', text):
        raise argparse.ArgumentTypeError(f'expected BATCHxHEIGHTxWIDTH, e.g. 2x512x512: {text!r}')
    batch, height, width = map(int, text.split('x'))
    if batch < 1 or min(height, width) < 32:
        raise argparse.ArgumentTypeError(f'must be at least 1x32x32: {text!r}')
    return batch, height, width


def _several(text: str | None = None, nargs: str = '+', **settings) -> dict:
    return dict(settings, nargs=nargs, help=text)


CONFIGS = 'instead of backbones: whole models, by config files or names of shipped configs'
FORMS = ('published', 'reference', 'compiled', 'published_compiled')
FORMS_HELP = (
    'compare with the backbone on deform_conv2d (published, no 16 bits), with plain shift + Linear '
    '(reference), or with torch.compile (compiled, published_compiled) (default: published)'
)
RIVALS = ('resnet50', 'swin_t', 'convnext_t')
RIVALS_HELP = f"compare with torchvision's {', '.join(RIVALS)}"
BACKENDS = ('auto', 'reference', 'shift', 'folded', 'triton')
BACKEND = dict(help=f'form of the mixers: {", ".join(BACKENDS)} (default: auto)')
MODE = dict(help='measure predictions or training steps (default: infer)')
DTYPE = f'{", ".join(DTYPES)}; amp is autocast to bfloat16 (default: float32)'
FORM_DTYPE = 'the same, of the other forms (default: as --dtype)'
OUT = 'folder for the csv, json and plot (default: work_dirs/benchmark)'
BATCH_SIZE = 'batch, height and width of the input (default: 1x512x512)'
OPTIONS = {
    '--arch': _several('backbones (default: b1)', default=['b1'], metavar='ARCH'),
    '--config': _several(CONFIGS, metavar='CONFIG'),
    '--size': _several(BATCH_SIZE, type=_size, default=[(1, 512, 512)], metavar='BxHxW'),
    '--mode': dict(MODE, choices=['infer', 'train'], default='infer'),
    '--dtype': _several(DTYPE, choices=DTYPES, default=['float32'], metavar='DTYPE'),
    '--form-dtype': _several(FORM_DTYPE, choices=DTYPES, metavar='DTYPE'),
    '--forms': _several(FORMS_HELP, '*', choices=FORMS, default=['published'], metavar='FORM'),
    '--rivals': _several(RIVALS_HELP, '*', choices=RIVALS, default=[], metavar='NAME'),
    '--backend': dict(BACKEND, choices=BACKENDS, default='auto', metavar='NAME'),
    **DEPLOY,
    '--device': dict(default='cpu', help='cpu, cuda, cuda:1, … (default: cpu)'),
    '--threads': dict(type=int, help="threads on a CPU (default: PyTorch's)", metavar='N'),
    '--repeats': dict(type=int, default=7, help='rounds (default: 7)', metavar='N'),
    '--out': dict(type=Path, default=Path('work_dirs/benchmark'), help=OUT, metavar='DIR'),
}


def _parse() -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES, OPTIONS)
    args = parser.parse_args()
    if args.deploy and args.mode == 'train':
        parser.error('--deploy is for --mode infer')
    compiled = {'compiled', 'published_compiled'}.intersection(args.forms)
    if args.config and (args.rivals or args.backend != 'auto' or compiled):
        parser.error('--rivals, --backend and compiled forms are for backbones, not for --config')
    if args.config and not {'float32', 'amp'}.issuperset(args.dtype):  # heads stay float32
        parser.error(f'--config takes --dtype float32 or amp, but got {" ".join(args.dtype)}')
    for name in ('repeats', 'threads'):
        if (number := getattr(args, name)) is not None and number < 1:
            parser.error(f'--{name} must be at least 1, but got {number}')
    args.form_dtype = args.form_dtype or args.dtype
    return args


def benchmark() -> None:
    """Read the command line, measure, print a table and write csv, json and a plot."""
    args = _parse()
    from benchmarking.compare import measure_all  # slow to import, and not needed for --help

    measure_all(args)


if __name__ == '__main__':
    _parse()
    run_tool(benchmark)
