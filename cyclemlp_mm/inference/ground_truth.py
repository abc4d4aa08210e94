"""Validation images with what is in them, from a config's own data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask

from cyclemlp_mm.datasets.load_labels import label_reader
from cyclemlp_mm.engine import require_toolbox
from cyclemlp_mm.engine.class_order import names_of, require_same_classes
from cyclemlp_mm.errors import MissingFileError, UserError

from .predictions import Instances, Prediction, Segments


@dataclass
class Labelled:
    """A validation image.

    Attributes:
        path (Path): The image.
        truth (Prediction): What is in it; of instances, all scores are 1.
        known (dict): What the data set knows about the image: the size that annotations are for.
        ignored (np.ndarray, optional): bool, (N,), of instances: need not be found.
    """

    path: Path
    truth: Prediction
    known: dict
    ignored: np.ndarray | None = None


def read_ground_truth(cfg: Config, classes: Sequence[str], checkpoint: str) -> Iterator[Labelled]:
    """Go through the validation set of a config.

    Args:
        cfg (Config): A detector's or segmentor's; that of a work dir knows its data.
        classes (Sequence[str]): Class names of the model that is compared with it.
        checkpoint (str): The model's, for messages.

    Yields:
        Labelled: One per image.

    Raises:
        MissingFileError: The data is not where the config says.
        UserError: The config has no validation set, or one of other classes.
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
    read_labels = label_reader(cfg.val_dataloader.dataset) if scope == 'mmseg' else None
    try:
        data = DATASETS.build(settings)
    except FileNotFoundError as error:
        raise MissingFileError(
            f'the data of this config is not there ({error}). Give the config of a work dir, which '
            'knows its data, or --data DIR'
        ) from error
    require_same_classes(classes, names_of(data.metainfo), checkpoint)
    for i in range(len(data)):
        info = data.get_data_info(i)
        if scope == 'mmseg':
            if not info.get('seg_map_path'):
                raise UserError('the validation set of this config has no labels to compare with')
            truth = Segments(read_labels(info).astype(np.int32))
            yield Labelled(
                Path(info['img_path']),
                truth,
                dict(height=truth.label_map.shape[0], width=truth.label_map.shape[1]),
            )
        else:
            known = {key: info[key] for key in ('height', 'width') if key in info}
            truth, ignored = _instances(info)
            yield Labelled(Path(info['img_path']), truth, known, ignored)


def _instances(info: dict) -> tuple[Instances, np.ndarray]:
    instances = info['instances']
    boxes = np.array([one['bbox'] for one in instances], np.float32).reshape(-1, 4)
    labels = np.array([one['bbox_label'] for one in instances], np.int64)
    ignored = np.array([one.get('ignore_flag', 0) for one in instances], bool)
    masks = None
    if instances and all(one.get('mask') for one in instances):
        size = info['height'], info['width']
        masks = [_mask(one['mask'], size) for one in instances]
    return Instances(boxes, np.ones(len(boxes), np.float32), labels, masks), ignored


def _mask(mask: dict | list, size: tuple[int, int]) -> dict:
    """Polygons or a run-length code, as a run-length code."""
    if isinstance(mask, dict):
        return coco_mask.frPyObjects(mask, *size) if isinstance(mask['counts'], list) else mask
    return coco_mask.merge(coco_mask.frPyObjects(mask, *size))
