"""CLI entry point of tools/visualize.py."""

import argparse
import copy
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from cyclemlp_mm.analysis import build_on_meta
from cyclemlp_mm.checks import check_writable, model_errors
from cyclemlp_mm.datasets.load_image import as_picture
from cyclemlp_mm.engine import load_config, require_toolbox, use_own_data
from cyclemlp_mm.engine.config_data import take_class_order
from cyclemlp_mm.engine.config_files import merge_options
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.ops import CycleFC
from cyclemlp_mm.visualization import draw_curves, figures, receptive_field
from cyclemlp_mm.weights import init_from_checkpoint

from .arguments import parse, require_boxes, style_of
from .screen import track


def visualize(argv: Sequence[str] | None = None) -> Path:
    """Draw what a model does, or how its training went; returns the picture."""
    args = parse('visualize', argv)
    args.out = args.out or f'work_dirs/pictures/{args.what}.png'
    check_writable(args.out, '--out')
    draw = dict(staircase=_staircase, field=_field, features=_features, gallery=_gallery)
    draw['curves'] = lambda args: draw_curves(args.work_dirs, args.out)
    path = draw[args.what](args)
    print(f'picture {path}')
    return path


def _staircase(args: argparse.Namespace) -> Path:
    if args.config is None:
        if args.cfg_options:
            raise UserError('--cfg-options change a config: give --config, too')
        return figures.draw_staircase(args.taps or [3, 5, 7], args.out)
    if args.taps:
        raise UserError(f'give either taps or --config, but got {args.taps} and {args.config}')
    cfg = load_config(args.config, args.cfg_options)
    with model_errors(args.config):
        backbone = build_on_meta(cfg).backbone
    layers = [layer for layer in backbone.modules() if isinstance(layer, CycleFC)]
    if not layers:
        raise UserError(f'{args.config}: its backbone has no CycleFC; name a config that has')
    taps = sorted({max(layer.kernel_size) for layer in layers})
    return figures.draw_staircase(taps, args.out)


def _field(args: argparse.Namespace) -> Path:
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
    resnet = receptive_field.resnet50_levels(strides, args.resnet_weights)
    networks = [(name, args.weights, receptive_field.backbone_levels(backbone))]
    networks += [('ResNet-50', args.resnet_weights, resnet)]
    fields = {}
    for name, file, levels in networks:
        found = receptive_field.receptive_fields(levels, strides, images)
        fields[f'{name}\n{Path(file).name if file else "random weights"}'] = found
        for field in found:
            sides = ', '.join(f'{s:.0%} within {field.side(s)} px' for s in (0.5, 0.95, 0.99))
            print(f'{name.splitlines()[0]:<12} stride {field.stride:>2}: {sides}')
    return receptive_field.draw_receptive_fields(fields, args.out)


def _build_backbone(cfg: Config, weights: str | None) -> nn.Module:
    """The config's backbone, returning every level up to its last."""
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None
    with model_errors(cfg.filename):
        backbone = MODELS.build(cfg.model.backbone)
    if not hasattr(backbone, 'out_strides'):
        raise UserError(f'{cfg.model.backbone.type} is not a backbone of cyclemlp_mm')
    cfg.model.backbone.out_indices = tuple(range(backbone.out_indices[-1] + 1))
    torch.manual_seed(0)
    backbone = MODELS.build(cfg.model.backbone)
    if weights is None:
        backbone.init_weights()
    else:
        init_from_checkpoint(backbone, backbone.published_format, weights)
    return backbone


def _normalised_images(cfg: Config, items: list[str], size: int, number: int) -> torch.Tensor:
    from cyclemlp_mm.inference import find_inputs, image_reader  # needs a toolbox, as below

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

    predictor = Predictor(args.config, args.checkpoint, 'cpu', args.cfg_options)
    model, seen = predictor.inferencer.model, []
    model.backbone.register_forward_hook(lambda _, inputs, outputs: seen.extend((inputs, outputs)))
    predictor.predict([predictor.read(args.image)[0]])
    (images,), levels = seen[-2:]
    image, norm = images[0], model.data_preprocessor
    if getattr(norm, 'mean', None) is not None:
        image = (image * norm.std + norm.mean).clamp(0, 255).round().byte()
    image = image.permute(1, 2, 0).cpu().numpy()
    picture = as_picture(image[..., ::-1] if image.shape[2] == 3 else image)  # the model sees RGB
    levels = [level[0].float().cpu().numpy() for level in levels]
    strides = model.backbone.out_strides
    return figures.draw_feature_maps(picture, levels, strides, args.out, args.number)


def _gallery(args: argparse.Namespace) -> Path:
    from cyclemlp_mm.inference import Predictor
    from cyclemlp_mm.inference.ground_truth import read_ground_truth
    from cyclemlp_mm.visualization import gallery

    style = style_of(args)
    cfg = load_config(args.config, args.cfg_options)
    if args.data is not None:
        use_own_data(cfg, args.data)
        options = args.cfg_options  # they win over --data, as in tools/train.py
        merge_options(cfg, {k: v for k, v in options.items() if 'pipeline' not in k})
    predictor = Predictor(copy.deepcopy(cfg), args.checkpoint, args.device)
    require_boxes(args, predictor.scope)
    classes = predictor.classes
    for line in take_class_order(cfg, classes, args.checkpoint):
        print(line)
    scores, worst, skipped = [], [], []
    labelled = islice(read_ground_truth(cfg, classes, args.checkpoint, skipped), args.limit)
    with track(labelled, 'Gallery') as labelled:
        for item in labelled:
            try:
                [prediction] = predictor.predict([item.image])
            except UserError as error:
                raise UserError(f'{item.path}: {error}') from error
            pair = item.truth, prediction
            if predictor.scope == 'mmseg':
                score = gallery.judge_segments(*pair, len(classes))
            else:
                score = gallery.judge_instances(*pair, style.score_thr, item.ignored)
            one = gallery.Judged(item.path.name, as_picture(item.image), *pair, *score)
            scores.append(one.score)
            worst = sorted([*worst, one], key=lambda j: (j.score, j.name))[: args.number]
    if skipped:
        print(f'skipped {len(skipped)} images that cannot be used, e.g. {skipped[0]}')
    if not worst:
        raise UserError('the validation set has no images')
    print(f'{len(scores)} images, mean {np.mean(scores):.3f}; the worst:')
    for one in worst:
        print(f'  {one.name}: {one.summary}')
    return gallery.draw_gallery(worst, classes, predictor.palette, args.out, style)
