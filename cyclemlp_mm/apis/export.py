"""CLI entry point of tools/export.py."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from cyclemlp_mm.checks import model_errors
from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.export import ExportedPart, ExportReport, export_model
from cyclemlp_mm.export.check import check_operators, latencies, runner
from cyclemlp_mm.export.metadata import describe
from cyclemlp_mm.export.quantize import calibration_images, check_quantized, quantize, run_by
from cyclemlp_mm.export.write import check_target
from cyclemlp_mm.inference.inputs import find_inputs
from cyclemlp_mm.inference.predictor import load_complete
from cyclemlp_mm.models import to_deploy
from cyclemlp_mm.weights import init_from_checkpoint, install_safe_loading

from .arguments import parse
from .prepare import prepare_config, take_classes_of


def export(argv: Sequence[str] | None = None) -> ExportReport:
    """Export a model with its weights, and print the report."""
    args = parse('export', argv)
    paths = _check_options(args)
    cfg = load_config(args.config, args.cfg_options)
    install_safe_loading()
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
        content, report = load_complete(model, args.checkpoint)
        print(report)
    if args.deploy:
        to_deploy(model)
    metadata = describe(cfg, part, model, content, args.checkpoint)
    if args.quantize:
        return _export_int8(args, cfg, model, metadata, paths)
    options = dict(force=args.force, opset=args.opset, constant_weights=args.constant_weights)
    report = export_model(model, args.dst, args.part, metadata, **options)
    print(report)
    part = ExportedPart(model, report.part)
    if args.time is not None:
        _print_times(part, exported=report.path, size=args.time)
    return report


def _check_options(args: argparse.Namespace) -> list[Path]:
    """Raise UserError for options that do not go together; returns images of ``--calibrate``."""
    if args.opset is None:
        args.opset = 20
    elif not args.dst.endswith('.onnx'):
        raise UserError(f'--opset is for .onnx files, and DST is {args.dst}: leave it out')
    if (args.quantize is None) != (args.calibrate is None):
        raise UserError('--quantize int8 and --calibrate DIR need each other')
    if args.quantize is None:
        for name in ('data', 'classes', 'ignore_label'):
            if getattr(args, name) is not None:
                option = name.replace('_', '-')
                raise UserError(f'--{option} is for --quantize, whose accuracy it measures')
        return []
    if not args.dst.endswith('.onnx') or args.opset < 13:
        raise UserError(
            '--quantize int8 writes .onnx of an opset from 13 on: change DST or --opset'
        )
    images = [one.path for one in find_inputs([args.calibrate]) if not one.is_video]
    if not images:
        raise UserError(f'--calibrate {args.calibrate} holds videos only: give a folder of images')
    return images


def _export_int8(
    args: argparse.Namespace, cfg: Config, model: nn.Module, metadata: dict, paths: Sequence[Path]
) -> ExportReport:
    """Export in float32 and in int8, compare both, and keep the int8 file."""
    dst = Path(args.dst)
    check_target(dst, args.force)
    part = ExportedPart(model, args.part)
    if part.is_whole_detector and args.data is None:
        what = '--quantize int8 with --part model: objects of a detector are compared by their AP'
        raise UserError(f'{what}. Give --data DIR, a folder with labels')
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.int8-', dir=dst.parent) as folder:
        whole, small = Path(folder, 'float32.onnx'), Path(folder, 'int8.onnx')
        labelled = None if args.data is None else _labelled(args, Path(folder, 'run'))
        images = calibration_images(cfg, part, model, paths)
        options = dict(force=args.force, opset=args.opset, constant_weights=True)
        report = export_model(model, whole, part.part, metadata, **options)
        quantize(whole, small, images)
        check_operators(small)
        lines = []
        if not part.is_whole_detector:
            lines.append(check_quantized(part, runner(small), images))
        if labelled is not None:
            lines.append(f'{args.data}: {_evaluate(labelled, part, small)}')
        os.replace(small, dst)
        report = replace(report, path=dst)
        print(report)
        sizes = ' instead of '.join(f'{p.stat().st_size / 2**20:.0f} MB' for p in (dst, whole))
        print('\n'.join([*lines, f'file: {sizes}']))
        size = args.time or images[0].shape[2:]
        _print_times(part, size, **{'float32 file': whole, 'int8 file': dst})
    return report


def _labelled(args: argparse.Namespace, work_dir: Path) -> Config:
    """The config of an evaluation on the validation part of ``--data``."""
    options = dict(vars(args), work_dir=str(work_dir), launcher='none')
    cfg = prepare_config(argparse.Namespace(**options), needed=('val',))
    cfg.load_from, cfg.resume, cfg.log_level = args.checkpoint, False, 'WARNING'
    take_classes_of(cfg)
    # Of its own, and without files: mmengine keeps a visualizer by its name for later runs.
    cfg.visualizer = dict(cfg.visualizer, name='int8', vis_backends=[])
    return cfg


def _evaluate(cfg: Config, part: ExportedPart, path: Path) -> str:
    """Metrics of the model and of an exported file of it, as text."""
    values, test_runner = {}, Runner.from_cfg(cfg)
    for form in ('float32', 'int8'):
        if form == 'int8':
            run_by(test_runner.model, part, runner(path))
        for name, value in test_runner.test().items():
            if name.endswith(('_mAP', 'mIoU', 'top1')):
                values.setdefault(name, []).append(value)
    lost = (f'{name} {ours:.4g} -> {small:.4g}' for name, (ours, small) in values.items())
    return f'float32 -> int8: {", ".join(lost)}'


def _print_times(part: ExportedPart, size: Sequence[int], **files: Path) -> None:
    """Print the latency of PyTorch and of exported files, by name, for one image."""
    shape = 1, part.channels, *size
    runs = {name: runner(path) for name, path in files.items()}
    seconds = latencies(dict(PyTorch=part, **runs), shape)
    times = ', '.join(f'{name} {1000 * value:.1f} ms' for name, value in seconds.items())
    threads = f'{torch.get_num_threads()} threads'
    print(f'{part.part} at {"x".join(map(str, shape))}, {threads}, median of 10: {times}')
