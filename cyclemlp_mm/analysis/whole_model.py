"""Parameters and multiply-adds of a config's model, part by part, without computing anything."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from cyclemlp_mm.engine import require_toolbox
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.export.parts import image_channels

from .counting import check_visible, multiply_adds

#: Height and width that a model is counted at, unless told: ImageNet's, COCO's 800 px in a padded
#: 5:8 frame, ADE20K's crop.
SIZES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 512)}


def build_on_meta(cfg: Config) -> nn.Module:
    """The config's model on the meta device: shapes, no numbers, no weights loaded.

    Args:
        cfg (Config): Of any of the toolboxes.

    Returns:
        nn.Module: In eval mode.
    """
    scope = require_toolbox(cfg)
    settings = Config(cfg.model.to_dict())
    settings.backbone.init_cfg = None
    settings.pop('pretrained', None)
    with torch.device('meta'), DefaultScope.overwrite_default_scope(scope), _quiet():
        return MODELS.build(settings).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what models say about losses and training when they are built."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            logger.setLevel(level)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model; a teacher that it is taught by is no part of it."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith('teacher.'))


def count_parts(model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of one image's inference, part by part.

    Two-stage detectors count ``test_cfg.rpn.max_per_img`` proposals in the box head and
    ``test_cfg.rcnn.max_per_img`` detections in the mask head, as many as inference may meet. What
    picks boxes, and a segmentor's auxiliary head, which inference does not run, count nothing.

    Args:
        model (nn.Module): From :func:`build_on_meta`.
        size (tuple[int, int]): Height and width.

    Returns:
        dict[str, int]: Multiply-adds by name of the part.

    Raises:
        UserError: The model is made of parts that are not known here.
        UncountedOperatorError: An operator cannot be counted.
    """
    known = {'data_preprocessor', 'backbone', 'neck', 'teacher', 'distillation_loss', *_HEADS}
    strange = [name for name, _ in model.named_children() if name not in known]
    if strange or not hasattr(model, 'backbone'):
        raise UserError(
            f'{type(model).__name__} cannot be counted: it has '
            f'{", ".join(strange) or "no backbone"}, and only {", ".join(sorted(known))} are known'
        )
    counts: dict[str, int] = {}
    features: Tensor | tuple = torch.empty(1, image_channels(model.backbone), *size, device='meta')

    def run(name: str, module: nn.Module, given: object) -> object:
        check_visible(module)
        results = []
        counts[name] = multiply_adds(lambda: results.append(module(given)))
        return results[0]

    for name in ('backbone', 'neck'):
        if getattr(model, name, None) is not None:
            features = run(name, getattr(model, name), features)
    for name in _HEADS:
        head = getattr(model, name, None)
        if head is None or name == 'auxiliary_head':
            continue
        if name == 'roi_head':
            for part, given in _roi_heads(model):
                run(f'roi_head.{part}', getattr(head, part), given)
        else:
            run(name, head, features)
    return counts


_HEADS = ('rpn_head', 'bbox_head', 'roi_head', 'decode_head', 'auxiliary_head', 'head')


def _roi_heads(detector: nn.Module) -> list[tuple[str, Tensor]]:
    """The heads on regions, with what they are given."""
    heads = [('bbox', detector.test_cfg.rpn.max_per_img)]
    if detector.roi_head.with_mask:
        heads.append(('mask', detector.test_cfg.rcnn.max_per_img))
    given = []
    for kind, number in heads:
        extractor = getattr(detector.roi_head, f'{kind}_roi_extractor')
        size = extractor.roi_layers[0].output_size
        shape = (number, extractor.out_channels, *size)
        given.append((f'{kind}_head', torch.empty(shape, device='meta')))
    return given
