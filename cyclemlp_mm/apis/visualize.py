"""CLI entry point of tools/visualize.py."""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.progress import track
from torch import nn

from cyclemlp_mm.checks import check_score_thr, check_writable, model_errors
from cyclemlp_mm.datasets.image_files import BadImageError
from cyclemlp_mm.datasets.load_image import as_picture
from cyclemlp_mm.engine import load_config, require_toolbox, use_own_data
from cyclemlp_mm.engine.config_data import take_class_order
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.weights import init_from_checkpoint

from .arguments import parse


def visualize(argv: Sequence[str] | None = None) -> Path:
    """Draw what a model does, or how its training went; returns the picture."""
    args = parse('visualize', argv)
    args.out = args.out or f'work_dirs/pictures/{args.what}.png'
    check_writable(args.out, '--out')
    path = _DRAW[args.what](args)
    print(f'picture {path}')
    return path


def _staircase(args: argparse.Namespace) -> Path:
    from cyclemlp_mm.visualization.figures import draw_staircase

    taps = args.taps or [3, 5, 7]
    wrong = [k for k in taps if k < 1 or k % 2 == 0]
    if wrong:
        raise UserError(f'a CycleFC has an odd, positive number of taps, but got {wrong}')
    if args.channels is not None and not 1 <= args.channels <= 256:
        raise UserError(f'--channels must be 1 to 256, but got {args.channels}')
    return draw_staircase(taps, args.out, args.channels)


def _field(args: argparse.Namespace) -> Path:
    from cyclemlp_mm.visualization.receptive_field import (
        backbone_levels,
        draw_receptive_fields,
        receptive_fields,
        resnet50_levels,
    )

    if args.size < 64 or args.number < 1:
        raise UserError(
            f'--size must be at least 64, --number at least 1, but got {args.size}, {args.number}'
        )
    cfg = load_config(args.config, args.cfg_options)
    backbone = _build_backbone(cfg, args.weights)
    strides = backbone.out_strides
    if args.images:
        images = _normalised_images(cfg, args.images, args.size, args.number)
    else:
        shape = args.number, cfg.model.backbone.get('in_channels', 3), args.size, args.size
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    name = f'{type(backbone).__name__}\n{Path(args.config).stem}'
    ours, resnet = (
        Path(file).name if file else 'random weights'
        for file in (args.weights, args.resnet_weights)
    )
    networks = {
        f'{name}\n{ours}': backbone_levels(backbone),
        f'ResNet-50\n{resnet}': resnet50_levels(strides, args.resnet_weights),
    }
    fields = {n: receptive_fields(levels, strides, images) for n, levels in networks.items()}
    for title, levels in fields.items():
        for field in levels:
            sides = ', '.join(f'{s:.0%} within {field.side(s)} px' for s in (0.5, 0.95, 0.99))
            print(f'{title.splitlines()[0]:<12} stride {field.stride:>2}: {sides}')
    return draw_receptive_fields(fields, args.out)


def _build_backbone(cfg: Config, weights: str | None) -> nn.Module:
    """The config's backbone, returning every level up to its last."""
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None
    with model_errors(cfg.filename):
        backbone = MODELS.build(cfg.model.backbone)
    if not hasattr(backbone, 'out_strides'):
        raise UserError(f'{cfg.model.backbone.type} is no backbone of cyclemlp_mm')
    cfg.model.backbone.out_indices = tuple(range(backbone.out_indices[-1] + 1))
    torch.manual_seed(0)
    backbone = MODELS.build(cfg.model.backbone)
    if weights is None:
        backbone.init_weights()
    else:
        init_from_checkpoint(backbone, backbone.published_format, weights)
    return backbone


def _normalised_images(cfg: Config, items: list[str], size: int, number: int) -> torch.Tensor:
    from cyclemlp_mm.inference import find_inputs, image_reader

    read = image_reader(cfg)
    norm = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if norm.get('mean') is None:
        raise UserError('the config has no data_preprocessor with mean and std')
    mean, std = (np.array(norm[part], np.float32) for part in ('mean', 'std'))
    images = []
    for source in [s for s in find_inputs(items) if not s.is_video][:number]:
        image, _ = read(source.path)
        image = image[..., ::-1] if image.ndim == 3 else image[..., None]
        top, left = (max(0, (side - size) // 2) for side in image.shape[:2])
        cut = image[top : top + size, left : left + size]
        if cut.shape[:2] != (size, size):
            raise UserError(f'{source.path} is smaller than --size {size}')
        images.append(torch.from_numpy(((cut - mean) / std).transpose(2, 0, 1)))
    if not images:
        raise UserError('--images names no image')
    return torch.stack(images).float()


def _features(args: argparse.Namespace) -> Path:
    from cyclemlp_mm.inference import Predictor
    from cyclemlp_mm.visualization.figures import draw_feature_maps

    if args.number < 1:
        raise UserError(f'--number must be at least 1, but got {args.number}')
    predictor = Predictor(args.config, args.checkpoint, 'cpu', args.cfg_options)
    model = predictor.inferencer.model
    backbone, kept = model.backbone, {}

    def keep(_: nn.Module, inputs: tuple, outputs: tuple) -> None:
        kept.update(image=inputs[0], levels=outputs)

    handle = backbone.register_forward_hook(keep)
    try:
        predictor.predict([predictor.read(args.image)[0]])
    finally:
        handle.remove()
    norm = model.data_preprocessor
    seen = kept['image'][0]
    if getattr(norm, 'mean', None) is not None:
        seen = (seen * norm.std + norm.mean).clamp(0, 255).round().byte()
    seen = seen.permute(1, 2, 0).cpu().numpy()
    picture = as_picture(seen[..., ::-1] if seen.shape[2] == 3 else seen)  # the model sees RGB
    levels = [level[0].float().cpu().numpy() for level in kept['levels']]
    return draw_feature_maps(picture, levels, backbone.out_strides, args.out, args.number)


def _curves(args: argparse.Namespace) -> Path:
    from cyclemlp_mm.visualization.curves import draw_curves

    return draw_curves(args.work_dirs, args.out)


def _gallery(args: argparse.Namespace) -> Path:
    from cyclemlp_mm.inference import Predictor
    from cyclemlp_mm.inference.ground_truth import read_ground_truth
    from cyclemlp_mm.visualization.gallery import (
        Judged,
        draw_gallery,
        judge_instances,
        judge_segments,
        worst_first,
    )

    if not 1 <= args.number <= 12:
        raise UserError(f'--number must be 1 to 12, but got {args.number}')
    if args.limit is not None and args.limit < 1:
        raise UserError(f'--limit must be at least 1, but got {args.limit}')
    check_score_thr(args.score_thr)
    cfg = load_config(args.config, args.cfg_options)
    if args.data is not None:
        use_own_data(cfg, args.data)
    predictor = Predictor(args.config, args.checkpoint, args.device, args.cfg_options)
    for line in take_class_order(cfg, predictor.classes, args.checkpoint):
        print(line)
    labelled = read_ground_truth(cfg, predictor.classes, args.checkpoint)
    console = Console(file=getattr(sys.stderr, 'raw', sys.stderr))
    judged, left_out = [], []
    for item in track(islice(labelled, args.limit), 'Gallery', console=console):
        try:
            image, _ = predictor.read(item.path, item.known)
        except (BadImageError, MissingFileError) as error:
            left_out.append(str(error))
            continue
        try:
            [prediction] = predictor.predict([image])
        except UserError as error:
            raise UserError(f'{item.path}: {error}') from error
        if predictor.is_segmentor:
            score = judge_segments(item.truth, prediction, len(predictor.classes))
        else:
            score = judge_instances(item.truth, prediction, args.score_thr, item.ignored)
        judged.append(Judged(item.path.name, as_picture(image), item.truth, prediction, *score))
        for one in worst_first([j for j in judged if j.image is not None])[args.number :]:
            one.image = one.truth = one.prediction = None  # only the worst keep their pixels
    if left_out:
        print(f'skipped {len(left_out)} images that cannot be used, e.g. {left_out[0]}')
    if not judged:
        raise UserError('the validation set has no images')
    worst = worst_first(judged)[: args.number]
    print(f'{len(judged)} images, mean {np.mean([one.score for one in judged]):.3f}; the worst:')
    for one in worst:
        print(f'  {one.name}: {one.summary}')
    return draw_gallery(worst, predictor.classes, predictor.palette, args.out, args.score_thr)


_DRAW = {
    'staircase': _staircase,
    'field': _field,
    'features': _features,
    'curves': _curves,
    'gallery': _gallery,
}
