"""Export: the whole of ``tools/export.py`` but its first line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from cyclemlp_mm.checks import model_errors
from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.engine.check_weights import compare
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.export import OPSETS, PARTS, ExportedPart, ExportReport, export_model
from cyclemlp_mm.export.check import onnx_runner, program_runner
from cyclemlp_mm.export.latency import latencies
from cyclemlp_mm.models import to_deploy
from cyclemlp_mm.weights import init_from_checkpoint, read_checkpoint
from cyclemlp_mm.weights.unwrap import find_state_dict
from cyclemlp_mm.weights.whole_model import for_mmengine

from .arguments import add_cfg_options, add_deploy, add_unsafe_load, new_parser

EXAMPLES = """\
  tools/export.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py CHECKPOINT fpn.onnx
  tools/export.py configs/cyclemlp_b1_in1k.py CycleMLP_B1.pth b1.onnx --part backbone
  tools/export.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py CHECKPOINT features.pt2
"""


def parse_export_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of ``tools/export.py``."""
    parser = new_parser(
        'Write a model as ONNX or torch.export file, checked against PyTorch', EXAMPLES
    )
    parser.add_argument('config', help='config file, or the name of a shipped config')
    parser.add_argument(
        'checkpoint',
        help='checkpoint file; for --part backbone, published files and whole models alike',
    )
    parser.add_argument('dst', metavar='DST', help='file to write, .onnx or .pt2')
    parser.add_argument(
        '--part',
        choices=PARTS,
        help="what comes out: the backbone's levels, those behind the neck, or logits (default: "
        'neck for detectors, model for segmentors and classifiers)',
    )
    parser.add_argument(
        '--time',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='then measure one image of this size, with PyTorch and as exported, on the CPU',
    )
    parser.add_argument(
        '--opset',
        type=int,
        default=20,
        choices=OPSETS,
        metavar='N',
        help='of an .onnx file, 11 to 20, for older readers (default: %(default)s)',
    )
    parser.add_argument('--force', action='store_true', help='replace DST if it is there')
    add_unsafe_load(parser)
    add_deploy(parser)
    add_cfg_options(parser)
    return parser.parse_args(argv)


def export(argv: Sequence[str] | None = None) -> ExportReport:
    """Export as the command line says.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Returns:
        ExportReport: What was written.

    Raises:
        UserError: With what is wrong and how to fix it; nothing is written then.
    """
    args = parse_export_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    model = _build(cfg)
    if args.time is not None:
        _check_time(model, args)
    if args.part == 'backbone':
        init_from_checkpoint(model.backbone, model.backbone.published_format, args.checkpoint)
    else:
        _load_whole(model, args.checkpoint)
    if args.deploy:
        to_deploy(model)
    metadata = _metadata(cfg, args)
    report = export_model(model, args.dst, args.part, metadata, args.force, args.opset)
    print(report)
    if args.time is not None:
        _print_latencies(model, report, tuple(args.time))
    return report


def _check_time(model: nn.Module, args: argparse.Namespace) -> None:
    part = ExportedPart(model, args.part)
    if min(args.time) < part.min_side:
        raise UserError(
            f'--time {args.time[0]} {args.time[1]}: --part {part.part} is exported for sides of at '
            f'least {part.min_side} px'
        )


def _print_latencies(model: nn.Module, report: ExportReport, size: tuple[int, int]) -> None:
    run = onnx_runner(report.path) if report.path.suffix == '.onnx' else program_runner(report.path)
    ours, exported = latencies(ExportedPart(model, report.part), run, (1, *size))
    print(
        f'{report.part} at 1x{report.channels}x{size[0]}x{size[1]}, {torch.get_num_threads()} '
        f'threads, median of 10: PyTorch {1000 * ours:.1f} ms, exported {1000 * exported:.1f} ms'
    )


def _build(cfg: Config) -> nn.Module:
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None  # all weights come from the checkpoint
    cfg.model.pop('pretrained', None)
    with model_errors(cfg.filename):
        return MODELS.build(cfg.model)


def _load_whole(model: nn.Module, checkpoint: str) -> None:
    """Load every tensor, or raise: a half-loaded model would be exported and pass its check."""
    content = for_mmengine(read_checkpoint(checkpoint), checkpoint)
    state_dict = find_state_dict(content, checkpoint)
    try:
        print(compare(model, state_dict, checkpoint, complete=True))
    except CheckpointError as error:
        raise CheckpointError(
            f'{checkpoint} does not fit the config: give the one that it was trained with, or '
            f'--part backbone ({error})'
        ) from error
    model.load_state_dict(state_dict, strict=False)


def _metadata(cfg: Config, args: argparse.Namespace) -> dict[str, str]:
    """What a user of the file needs to feed it."""
    norm = cfg.model.get('data_preprocessor') or {}
    is_rgb = norm.get('bgr_to_rgb') or norm.get('to_rgb')
    return dict(
        config=Path(args.config).stem,
        input='float32 (batch, channels, height, width), (pixel - mean) / std',
        channels='RGB' if is_rgb else 'as loaded',
        mean=json.dumps(list(norm.get('mean') or ())),
        std=json.dumps(list(norm.get('std') or ())),
    )
