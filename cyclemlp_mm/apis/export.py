"""CLI entry point of tools/export.py."""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from cyclemlp_mm.checks import model_errors
from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.export import ExportedPart, ExportReport, export_model
from cyclemlp_mm.export.check import latencies, runner
from cyclemlp_mm.export.metadata import describe
from cyclemlp_mm.models import to_deploy
from cyclemlp_mm.weights import init_from_checkpoint, read_checkpoint
from cyclemlp_mm.weights.unwrap import find_state_dict
from cyclemlp_mm.weights.whole_model import for_mmengine

from .arguments import parse


def export(argv: Sequence[str] | None = None) -> ExportReport:
    """Export a model with its weights, and print the report."""
    args = parse('export', argv)
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None  # all weights come from the checkpoint
    cfg.model.pop('pretrained', None)
    with model_errors(cfg.filename):
        model = MODELS.build(cfg.model)
    part = ExportedPart(model, args.part)
    if args.time is not None and min(args.time) < part.min_side:
        size = f'--time {args.time[0]} {args.time[1]}'
        raise UserError(f'{size}: --part {part.part} needs sides of at least {part.min_side} px')
    if args.part == 'backbone':
        init_from_checkpoint(model.backbone, model.backbone.published_format, args.checkpoint)
        content = {}
    else:
        content = _load_whole(model, args.checkpoint)
    if args.deploy:
        to_deploy(model)
    metadata = describe(cfg, part, model, content, args.checkpoint)
    constant = args.constant_weights
    report = export_model(model, args.dst, args.part, metadata, args.force, args.opset, constant)
    print(report)
    if args.time is not None:
        part = ExportedPart(model, report.part)
        ours, exported = latencies(part, runner(report.path), (1, *args.time))
        size = f'1x{report.channels}x{args.time[0]}x{args.time[1]}'
        times = f'PyTorch {1000 * ours:.1f} ms, exported {1000 * exported:.1f} ms'
        threads = f'{torch.get_num_threads()} threads'
        print(f'{report.part} at {size}, {threads}, median of 10: {times}')
    return report


def _load_whole(model: nn.Module, checkpoint: str) -> dict:
    """Load every tensor, or raise: a half-loaded model would be exported and pass its check.

    Returns what else is in the file.
    """
    content = for_mmengine(read_checkpoint(checkpoint), checkpoint)
    state_dict = find_state_dict(content, checkpoint)
    try:
        print(compare(model, state_dict, checkpoint, complete=True))
    except CheckpointError as error:
        fix = 'give the one that it was trained with, or --part backbone'
        raise CheckpointError(f'{checkpoint} does not fit the config: {fix} ({error})') from error
    model.load_state_dict(state_dict, strict=False)
    return content
