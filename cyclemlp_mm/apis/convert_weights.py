"""Conversion of weights: the whole of ``tools/convert_weights.py`` but its first line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cyclemlp_mm.weights.convert import TARGETS, Conversion, convert

from .arguments import add_unsafe_load, new_parser

EXAMPLES = """\
  tools/convert_weights.py CycleMLP_B1.pth b1.safetensors
  tools/convert_weights.py cyclemlp_b1.pdparams CycleMLP_B1.pth --to published
  tools/convert_weights.py work_dirs/RUN/epoch_12.pth detector.pth      # without optimiser state
"""


def convert_weights(argv: Sequence[str] | None = None) -> Conversion:
    """Convert as the command line says, and print what was recognised and written.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Returns:
        Conversion: What was printed.

    Raises:
        UserError: With what is wrong and how to fix it; nothing was written.
    """
    args = _parse_args(argv)
    done = convert(args.source, args.target, args.to, args.force)
    print(f'read     {args.source}: {done.source} weights, CycleMLP {done.arch}')
    print(
        f'written  {args.target}: {done.backbone} tensors of the backbone, {done.classifier} of '
        f'the classifier, {done.rest} of the rest of the model'
    )
    if done.dropped:
        print(f'dropped  {done.dropped} tensors of the neck and heads: published files have none')
    print(f'sha256   {done.sha256}')
    return done


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(
        'Convert weights of a CycleMLP: from published, Paddle, safetensors or our own files '
        '(backbones, classifiers, whole detectors and segmentors)',
        EXAMPLES,
    )
    parser.add_argument('source', metavar='SRC', help='file or http(s) URL')
    parser.add_argument('target', metavar='DST', help='new file')
    parser.add_argument(
        '--to',
        choices=TARGETS,
        help='format of DST (default: safetensors for a DST of that suffix, else ours)',
    )
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    add_unsafe_load(parser)
    return parser.parse_args(argv)
