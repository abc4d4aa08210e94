"""Validation images with what is in them, from a config's own data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask

from cyclemlp_mm.datasets.load_labels import label_reader
from cyclemlp_mm.engine import require_toolbox
from cyclemlp_mm.engine.config_data import names_of, require_same_classes
from cyclemlp_mm.errors import MissingFileError, UserError

from .predictions import Instances, Prediction, Segments


@dataclass
class Labelled:
    """A validation image, what is in it, and the height and width that its annotations are for.

    Scores of instances are 1; ``ignored``, bool (N,), marks those that need not be found.
    """

    path: Path
    truth: Prediction
    known: dict
    ignored: np.ndarray | None = None


def read_ground_truth(cfg: Config, classes: Sequence[str], checkpoint: str) -> Iterator[Labelled]:
    """Go through the validation set of a config, for a model with these classes.

    Raises a UserError if the data are not there, or have no labels or other classes.
    """
    scope = require_toolbox(cfg)
    if scope == 'mmpretrain':
        raise UserError('a gallery needs boxes, masks or segments; this is a classification config')
    if cfg.get('val_dataloader') is None:
        raise UserError('the config has no val_dataloader, so there is no ground truth to show')
    init_default_scope(scope)
    settings = cfg.val_dataloader.dataset
    read_labels = label_reader(settings) if scope == 'mmseg' else None
    try:
        data = import_module(f'{scope}.registry').DATASETS.build({**settings, 'pipeline': []})
    except FileNotFoundError as error:
        fix = 'give the config of a work dir, or --data DIR'
        raise MissingFileError(f'the data of this config is not there ({error}): {fix}') from error
    require_same_classes(classes, names_of(data.metainfo), checkpoint)
    for i in range(len(data)):
        info = data.get_data_info(i)
        if scope == 'mmdet':
            known = {key: info[key] for key in ('height', 'width') if key in info}
            ignored = np.array([one.get('ignore_flag', 0) for one in info['instances']], bool)
            yield Labelled(Path(info['img_path']), _instances(info), known, ignored)
            continue
        if not info.get('seg_map_path'):
            raise UserError('the validation set of this config has no labels to compare with')
        labels = read_labels(info).astype(np.int32)
        known = dict(zip(('height', 'width'), labels.shape))
        yield Labelled(Path(info['img_path']), Segments(labels), known)


def _instances(info: dict) -> Instances:
    instances = info['instances']
    boxes = np.array([one['bbox'] for one in instances], np.float32).reshape(-1, 4)
    labels = np.array([one['bbox_label'] for one in instances], np.int64)
    masks = None
    if instances and all(one.get('mask') for one in instances):
        size = info['height'], info['width']
        masks = [_run_length_code(one['mask'], size) for one in instances]
    return Instances(boxes, np.ones(len(boxes), np.float32), labels, masks)


def _run_length_code(mask: dict | list, size: tuple[int, int]) -> dict:
    if isinstance(mask, dict):
        return coco_mask.frPyObjects(mask, *size) if isinstance(mask['counts'], list) else mask
    return coco_mask.merge(coco_mask.frPyObjects(mask, *size))
