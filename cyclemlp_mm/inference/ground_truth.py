"""Validation images with what is in them, from a config's own data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

from cyclemlp_mm.engine import require_toolbox
from cyclemlp_mm.errors import MissingFileError, UserError

from .predictions import Instances, Prediction, Segments


@dataclass
class Labelled:
    """A validation image.

    Attributes:
        path (Path): The image.
        truth (Prediction): What is in it; of instances, all scores are 1.
        ignored (np.ndarray, optional): bool, (N,), of instances: need not be found.
    """

    path: Path
    truth: Prediction
    ignored: 'np.ndarray | None' = None


def read_ground_truth(cfg: Config) -> 'Iterator[Labelled]':
    """Go through the validation set of a config.

    Args:
        cfg (Config): A detector's or segmentor's; that of a work dir knows its data.

    Yields:
        Labelled: One per image.

    Raises:
        MissingFileError: The data is not where the config says.
        UserError: The config has no validation set.
    """
    scope = require_toolbox(cfg)
    if scope == 'mmdet':
        from mmdet.registry import DATASETS
    elif scope == 'mmseg':
        from mmseg.registry import DATASETS
    else:
        raise UserError('a gallery needs boxes, masks or segments; this is a classification config')
    if cfg.get('val_dataloader') is None:
        raise UserError('the config has no val_dataloader, so there is no ground truth to show')
    init_default_scope(scope)
    settings = {**cfg.val_dataloader.dataset, 'pipeline': []}
    try:
        data = DATASETS.build(settings)
    except FileNotFoundError as error:
        raise MissingFileError(
            f'the data of this config is not there ({error}). Give the config of a work dir, which '
            'knows its data, or --data DIR'
        ) from error
    for i in range(len(data)):
        info = data.get_data_info(i)
        if scope == 'mmseg':
            yield Labelled(Path(info['img_path']), _segments(info))
        else:
            yield Labelled(Path(info['img_path']), *_instances(info))


def _segments(info: dict) -> Segments:
    labels = np.asarray(Image.open(info['seg_map_path'])).astype(np.int32)
    if info.get('reduce_zero_label'):
        labels = np.where(labels == 0, 255, labels - 1)
    for old, new in (info.get('label_map') or {}).items():
        labels = np.where(labels == old, new, labels)
    return Segments(labels)


def _instances(info: dict) -> 'tuple[Instances, np.ndarray]':
    instances = info['instances']
    boxes = np.array([one['bbox'] for one in instances], np.float32).reshape(-1, 4)
    labels = np.array([one['bbox_label'] for one in instances], np.int64)
    ignored = np.array([one.get('ignore_flag', 0) for one in instances], bool)
    masks = None
    if instances and all(one.get('mask') for one in instances):
        size = info['height'], info['width']
        masks = [_mask(one['mask'], size) for one in instances]
    return Instances(boxes, np.ones(len(boxes), np.float32), labels, masks), ignored


def _mask(mask: 'dict | list', size: 'tuple[int, int]') -> dict:
    """Polygons or a run-length code, as a run-length code."""
    if isinstance(mask, dict):
        return coco_mask.frPyObjects(mask, *size) if isinstance(mask['counts'], list) else mask
    return coco_mask.merge(coco_mask.frPyObjects(mask, *size))
