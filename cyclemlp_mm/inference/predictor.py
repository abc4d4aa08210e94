"""A trained model, ready to predict: one interface to the inferencers of the three toolboxes."""

import copy
import warnings
from collections.abc import Sequence
from inspect import signature
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

from cyclemlp_mm.checks import check_device, model_errors
from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.engine.config_data import class_names, heads_classes, palette_of, trained_metainfo
from cyclemlp_mm.engine.config_files import merge_options
from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.models import to_deploy
from cyclemlp_mm.weights import install_safe_loading
from cyclemlp_mm.weights.unwrap import find_state_dict

from .inputs import image_reader, loading_steps
from .predictions import Prediction, from_sample


class Predictor:
    """A detector, segmentor or classifier with its weights.

    Args:
        config (str | Path | Config): Config file, or the name of a shipped config; or a config,
            which is changed.
        checkpoint (str | Path): Its weights; every tensor of the model must be in it.
        device (str, optional): 'cpu', 'cuda', 'cuda:1', … Defaults to None: a GPU if there is one.
        cfg_options (dict, optional): Settings of the config to override, by dotted key.
        deploy (bool): Whether to apply :func:`cyclemlp_mm.models.to_deploy`. Defaults to False.
        as_stored (bool): Whether ``read`` ignores EXIF rotation. Defaults to False.

    Attributes:
        inferencer (DetInferencer | MMSegInferencer | ImageClassificationInferencer): What predicts.
        scope (str): The toolbox: 'mmdet', 'mmseg' or 'mmpretrain'.
        classes (tuple[str]): Class names, in the order of the labels.
        palette (list[tuple]): RGB in 0..255 of each class.
        device (str): Where it runs.
        read (Callable): Reads an image for it, see :func:`.inputs.image_reader`.

    Raises:
        UserError: A file or the device is not there, the checkpoint does not fit (CheckpointError),
            or the config cannot be built.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | None = None,
        cfg_options: dict | None = None,
        deploy: bool = False,
        as_stored: bool = False,
    ) -> None:
        if isinstance(config, Config):
            cfg = config
            merge_options(cfg, cfg_options)
        else:
            cfg = load_config(str(config), cfg_options)
        install_safe_loading()
        self.scope = require_toolbox(cfg)
        checkpoint = str(checkpoint)
        if not Path(checkpoint).is_file() and '://' not in checkpoint:
            raise MissingFileError(f'checkpoint {checkpoint} does not exist')
        self.device = check_device(device)
        with model_errors(cfg.filename):
            self.inferencer = _build_inferencer(cfg, self.scope, self.device)
        model = self.inferencer.model
        content, _ = load_complete(model, checkpoint)
        meta = dict(names_for(content, cfg, checkpoint))
        if self.scope == 'mmdet' and model.dataset_meta.get('palette') != 'random':
            meta['palette'] = model.dataset_meta['palette']  # the config's
        model.dataset_meta = meta
        self._takes_grey = [s.get('color_type') for s in loading_steps(cfg)] == ['grayscale']
        self.read = image_reader(cfg, as_stored)
        if deploy:
            to_deploy(model)
        self.classes = tuple(meta['classes'])
        self.palette = palette_of(meta, len(self.classes))

    def predict(self, images: Sequence[np.ndarray], batch_size: int = 1) -> list[Prediction]:
        """Predict images that are in memory, one by one or in batches.

        Args:
            images (Sequence[np.ndarray]): BGR uint8, (H, W, 3) each, or as ``read`` returns them.
            batch_size (int): Images at once, of those in a row that have one size: padding would
                count in the branches' weights of every CycleMLP block. Defaults to 1.

        Raises:
            UserError: The model cannot take an image, e.g. as it is too small or too narrow.
        """
        if self._takes_grey:  # frames of videos, and pictures from elsewhere
            images = [
                cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.shape[2:] == (3,) else image
                for image in images
            ]
        predictions = []
        options = dict(return_datasamples=True, batch_size=batch_size)
        if self.scope == 'mmdet':
            options['no_save_vis'] = True
        for shape, group in groupby(images, key=lambda image: image.shape):
            try:
                samples = self.inferencer(list(group), **options)
            except (ValueError, cv2.error) as error:
                reason = getattr(error, 'err', error)  # OpenCV's message is longer
                if isinstance(error, cv2.error) and getattr(error, 'func', '') == 'resize':
                    reason = 'they are so narrow that a side is resized to 0 px: crop or pad them'
                what = f'cannot predict images of {shape[1]}×{shape[0]} px'
                raise UserError(f'{what}: {reason}') from error
            samples = samples['predictions'] if isinstance(samples, dict) else samples
            samples = samples if isinstance(samples, list) else [samples]
            predictions += [from_sample(sample, len(self.classes)) for sample in samples]
        return predictions


def _build_inferencer(cfg: Config, scope: str, device: str) -> BaseInferencer:
    """An inferencer whose model has no weights yet: the toolboxes load without a check."""
    # Images are read before, by the config's own loading step; the inferencers require this one.
    cfg = copy.deepcopy(cfg)
    for step in loading_steps(cfg):
        if step['type'] != 'LoadImageFromFile':
            step.clear()
            step['type'] = 'LoadImageFromFile'
    init_default_scope(scope)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # that the model is random
        if scope == 'mmpretrain':
            from mmpretrain.apis import ImageClassificationInferencer

            return ImageClassificationInferencer(cfg, pretrained=False, device=device)
        if scope == 'mmdet':
            from mmdet.apis import DetInferencer as Inferencer
        else:
            from mmseg.apis import MMSegInferencer as Inferencer
        # mmseg 1.2.2 has no such argument.
        quiet = {key: False for key in signature(Inferencer).parameters if key == 'show_progress'}
        return Inferencer(model=cfg, device=device, scope=scope, **quiet)


def load_complete(model: nn.Module, checkpoint: str) -> tuple[dict, str]:
    """Load all weights of a model; CheckpointError if one is missing or does not fit.

    Returns the content of the file, and what was loaded, in words.
    """
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state_dict = find_state_dict(content, checkpoint)
    report = compare(model, state_dict, checkpoint, complete=True)
    model.load_state_dict(state_dict, strict=False)
    return content, report


def names_for(content: dict, cfg: Config, checkpoint: str) -> dict:
    """``classes`` and any ``palette`` of a checkpoint, or where it has no names, of its config."""
    names, whose = trained_metainfo(content), 'its class names are'
    if not names:
        names, whose = class_names(cfg) or {}, 'it has no class names; those of the config are'
        listed = ', '.join(map(str, names.get('classes', ())[:5]))
        print_log(f'checkpoint {checkpoint}: {whose} used: {listed or "none"}', 'current')
    numbers = dict(heads_classes(cfg.model))
    found = len(names.get('classes', ()))
    if found not in numbers.values() and (numbers or not found):
        expected = ', '.join(f'{number} ({key})' for key, number in numbers.items()) or 'some'
        raise UserError(
            f'checkpoint {checkpoint}: {whose} {found}, but the model has {expected}. Set them by '
            "--cfg-options test_dataloader.dataset.metainfo.classes=\"('name', 'name')\""
        )
    return names
