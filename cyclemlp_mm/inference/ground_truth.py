"""Validation images with what is in them, as a config's own data set and pipeline load them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from cyclemlp_mm.datasets.load_image import check_steps
from cyclemlp_mm.engine import require_toolbox
from cyclemlp_mm.engine.bad_images import check_max_value
from cyclemlp_mm.engine.config_data import data_sets, names_of, require_same_classes
from cyclemlp_mm.errors import MissingFileError, UserError

from .predictions import Instances, Prediction, Segments, encode_mask


@dataclass
class Labelled:
    """A validation image, as the pipeline's loading step makes it, and what is in it.

    Scores of instances are 1; ``ignored``, bool (N,), marks those that need not be found.
    """

    path: Path
    image: np.ndarray
    truth: Prediction
    ignored: np.ndarray | None = None


def read_ground_truth(
    cfg: Config, classes: Sequence[str], checkpoint: str, skipped: list[str]
) -> Iterator[Labelled]:
    """Go through the validation set of a config, for a model with these classes.

    ``skipped`` gets a line for each image that cannot be used. Raises a UserError if the data are
    not there, or have no labels or other classes.
    """
    scope = require_toolbox(cfg)
    if scope == 'mmpretrain':
        raise UserError('a gallery needs boxes, masks or segments; this is a classification config')
    settings = next((dataset for _, dataset in data_sets(cfg, ['val'])), None)
    if settings is None:
        raise UserError('the config has no val_dataloader, so there is no ground truth to show')
    init_default_scope(scope)
    # Steps that load, and no others: all is in pixels of the file.
    loads = re.compile(r'(.*\.)?(Load|CheckLabels)')
    steps = [step for step in settings.get('pipeline') or () if loads.match(str(step['type']))]
    if 'LoadAnnotations' not in str(steps):
        steps.append(dict(type='LoadAnnotations'))
    try:
        data = DATASETS.build({**settings, 'pipeline': steps})
    except FileNotFoundError as error:
        fix = 'give the config of a work dir, or --data DIR'
        raise MissingFileError(f'the data of this config is not there ({error}): {fix}') from error
    require_same_classes(classes, names_of(data.metainfo), checkpoint)
    checked = check_steps(data.pipeline.transforms, False, check_max_value(cfg))
    for i in range(len(data)):
        path = data.get_data_info(i)['img_path']
        if scope == 'mmseg' and not data.get_data_info(i).get('seg_map_path'):
            raise UserError('the validation set of this config has no labels to compare with')
        loaded = data.prepare_data(i)
        if loaded is None:
            skipped += [f'{path} {note.reason}' for step in checked for note in step.notes]
        elif 'gt_seg_map' in loaded:
            yield Labelled(Path(path), loaded['img'], Segments(loaded['gt_seg_map']))
        else:
            ignored = np.asarray(loaded['gt_ignore_flags'], bool)
            yield Labelled(Path(path), loaded['img'], _instances(loaded), ignored)
        for step in checked:
            step.notes.clear()


def _instances(loaded: dict) -> Instances:
    """Boxes, and masks where they are loaded, as mmdet's ``LoadAnnotations`` returns them."""
    boxes = getattr(loaded['gt_bboxes'], 'tensor', loaded['gt_bboxes'])
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    masks = None
    if 'gt_masks' in loaded:
        masks = [encode_mask(mask) for mask in loaded['gt_masks'].to_ndarray()]
    labels = np.asarray(loaded['gt_bboxes_labels'], np.int64)
    return Instances(boxes, np.ones(len(boxes), np.float32), labels, masks)
