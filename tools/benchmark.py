#!/usr/bin/env python
"""``tools/benchmark.py``: how fast, against the published form and torchvision's backbones."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

from cyclemlp_mm.apis.arguments import DEPLOY, Parser
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.errors import UserError

_EXAMPLES = """\
  tools/benchmark.py --arch b1 b2 --size 4x224x224 1x512x512 1x800x1216
  tools/benchmark.py --arch b2 --size 1x800x1216 --rivals resnet50 swin_t convnext_t
  tools/benchmark.py --arch b1 b2 --size 2x512x512 --mode train
  tools/benchmark.py --config retinanet_cyclemlp_b1_fpn_1x_coco --size 2x512x512 --mode train
  tools/benchmark.py --arch mpvit_small b2 --size 1x800x1216 --deploy
  tools/benchmark.py --arch b2 --size 8x800x1216 --mode train --dtype amp --device cuda \\
      --backend triton"""


_DTYPES = ('float32', 'bfloat16', 'float16', 'amp')
#: torchvision has no deform_conv2d for these.
_IMPOSSIBLE = (('published', 'bfloat16'), ('published', 'float16'))


def benchmark() -> None:
    """Read the command line, measure, print a table and write csv, json and a plot."""
    args = _parse()
    # Slow to import, and not needed for --help.
    import torch

    from benchmarking.compare import compare
    from benchmarking.measure import copy_bandwidth, describe, matmul_rate
    from benchmarking.report import add_ratios, table, write
    from benchmarking.workloads import ARCHS, DTYPES, MPVIT, OWN_FORMS
    from cyclemlp_mm.checks import check_device, check_writable
    from cyclemlp_mm.engine import find_config

    for arch in args.arch:
        if arch not in ARCHS:
            raise UserError(f'--arch must be of {", ".join(ARCHS)}, but got {arch}')
    device = torch.device(check_device(args.device))
    check_writable(args.out, '--out', is_folder=True)
    for config in args.config or ():  # a wrong name ends it before the machine is measured
        find_config(config)
    if args.threads:
        torch.set_num_threads(args.threads)
    rates = {d: matmul_rate(device, DTYPES[d]) for d in args.dtype if d in DTYPES}
    facts = dict(
        describe(device),
        command=shlex.join(['tools/benchmark.py', *sys.argv[1:]]),
        matmul_operations_per_s=rates,
        copy_bytes_per_s=copy_bandwidth(device),
    )
    for key, value in facts.items():
        print(f'{key}: {value}')
    for form, dtype in _IMPOSSIBLE:
        if form in args.forms and dtype in args.form_dtype:
            print(f'not measured: the {form} form in {dtype} (torchvision has no such operator)')
    rows = []
    for size in args.size:
        for arch in args.config or args.arch:
            forms = [f for f in args.forms if f in OWN_FORMS or not arch.startswith(MPVIT)]
            if arch == args.arch[-1] and not args.config:  # once per size
                forms += args.rivals
            entries = [('ours', dtype) for dtype in args.dtype]
            entries += [(form, dtype) for form in forms for dtype in args.form_dtype]
            entries = [entry for entry in entries if entry not in _IMPOSSIBLE]
            found = compare(entries, arch, size, args, device)
            rows += found
            add_ratios(rows, rates)
            print('\n' + table(found), flush=True)
    write(rows, facts, args.out)
    print(f'\nwritten: {args.out}/benchmark.csv, .json, .png')


def _parse() -> argparse.Namespace:
    parser = Parser(__doc__, _EXAMPLES, DEPLOY)
    parser.add_argument('--arch', nargs='+', default=['b1'], metavar='ARCH')
    parser.add_argument(
        '--config',
        nargs='+',
        metavar='CONFIG',
        help='instead of backbones: the whole models of configs, files or names of shipped ones',
    )
    parser.add_argument('--size', nargs='+', type=_size, default=[(1, 512, 512)], metavar='BxHxW')
    parser.add_argument('--mode', choices=['infer', 'train'], default='infer')
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=_DTYPES,
        default=['float32'],
        help="of ours; 'amp' is autocast to bfloat16",
    )
    parser.add_argument(
        '--form-dtype',
        nargs='+',
        choices=_DTYPES,
        help='of what ours is compared with (default: as --dtype)',
    )
    parser.add_argument(
        '--forms',
        nargs='*',
        choices=['published', 'reference', 'compiled'],
        default=['published'],
        help='the same backbone on deform_conv2d (not in bfloat16), with plain shift + Linear, or '
        'by torch.compile',
    )
    parser.add_argument(
        '--rivals', nargs='*', choices=['resnet50', 'swin_t', 'convnext_t'], default=[]
    )
    parser.add_argument(
        '--backend', choices=['auto', 'reference', 'shift', 'folded', 'triton'], default='auto'
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, help='of a CPU (default: as PyTorch has it)')
    parser.add_argument('--repeats', type=int, default=7, help='rounds (default: 7)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    args = parser.parse_args()
    if args.deploy and args.mode == 'train':
        parser.error('--deploy is for --mode infer')
    if args.config and (args.rivals or args.backend != 'auto' or 'compiled' in args.forms):
        parser.error('--rivals, --backend and --forms compiled are for backbones, not for --config')
    if args.config and not {'float32', 'amp'}.issuperset(args.dtype):  # heads stay float32
        parser.error(f'--config takes --dtype float32 or amp, but got {" ".join(args.dtype)}')
    if args.repeats < 1:
        parser.error(f'--repeats must be at least 1, but got {args.repeats}')
    if args.threads is not None and args.threads < 1:
        parser.error(f'--threads must be at least 1, but got {args.threads}')
    args.form_dtype = args.form_dtype or args.dtype
    return args


def _size(text: str) -> tuple[int, int, int]:
    found = re.fullmatch(r'(\d+)x(\d+)x(\d+)', text)
    if not found:
        raise argparse.ArgumentTypeError(f'expected BATCHxHEIGHTxWIDTH, e.g. 2x512x512: {text!r}')
    size = tuple(map(int, found.groups()))
    if size[0] < 1 or min(size[1:]) < 32:
        raise argparse.ArgumentTypeError(f'must be at least 1x32x32: {text!r}')
    return size


if __name__ == '__main__':
    _parse()
    run_tool(benchmark)
