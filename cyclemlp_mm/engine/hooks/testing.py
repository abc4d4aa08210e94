"""Hooks of a test: pictures of its predictions, and a model in deploy mode."""

import copy
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image

from cyclemlp_mm.datasets.image_files import BadImageError
from cyclemlp_mm.datasets.load_image import LoadCheckedImage, as_picture, image_loader
from cyclemlp_mm.engine.config_data import palette_of
from cyclemlp_mm.models import to_deploy

_WRITTEN = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


@HOOKS.register_module()
class DeployModel(Hook):
    """Tests a folded copy of the model; see :func:`cyclemlp_mm.models.to_deploy`.

    A copy, because EMAHook puts the training's weights back into the model afterwards, one
    parameter after the other.
    """

    priority = 'VERY_LOW'  # after EMAHook, which puts the averaged weights in

    def before_test_epoch(self, runner: Runner) -> None:
        self._model = model = runner.model
        runner.model = to_deploy(copy.deepcopy(model.module if is_model_wrapper(model) else model))
        runner.logger.info('deploy mode: what can be folded was folded')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        runner.model = self._model


@HOOKS.register_module()
class DrawResults(Hook):
    """Draws every image of a test as the model saw it: ground truth left, prediction right.

    Unlike by the toolboxes' hooks, images are turned as they were loaded, and the pictures are in
    the same sub-folders as the images.

    Args:
        out_dir (str): Folder for the pictures.
        style (Style, optional): See :class:`cyclemlp_mm.visualization.overlay.Style`.
    """

    def __init__(self, out_dir: str, style: object = None) -> None:
        self.out_dir = Path(out_dir)
        self.style = style

    def before_test_epoch(self, runner: Runner) -> None:
        data = runner.test_loop.dataloader.dataset
        self._loader = image_loader(data) or LoadCheckedImage()
        self._classes = data.metainfo['classes']
        self._palette = palette_of(data.metainfo, len(self._classes))
        paths = [str(data.get_data_info(i)['img_path']) for i in range(len(data))]
        self._names = _picture_names(paths, runner.cfg.get('default_scope') == 'mmdet')

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        for sample in outputs:
            path = str(sample.img_path)
            name = self._names.get(path) or f'{Path(path).name}.png'
            file = self.out_dir / name
            file.parent.mkdir(parents=True, exist_ok=True)
            image = self._read(path, sample)
            parts = [self._draw(image, sample, part) for part in ('gt', 'pred')]
            parts = [part for part in parts if part is not None]
            height = max(len(part) for part in parts)
            parts = [
                np.pad(p, ((0, height - len(p)), (0, 8), (0, 0)), constant_values=255)
                for p in parts
            ]
            Image.fromarray(np.concatenate(parts, axis=1)[:, :-8]).save(file)

    def _draw(self, image: np.ndarray, sample: object, part: str) -> np.ndarray | None:
        """The image with its ground truth ('gt') or prediction ('pred'); None without labels."""
        # Not above: these modules import the engine.
        from cyclemlp_mm.inference.predictions import from_sample
        from cyclemlp_mm.visualization.overlay import Style, draw_prediction, with_legend

        prediction = from_sample(sample, len(self._classes), part)
        if prediction is None:
            return None
        style = self.style or Style()
        style = replace(style, hide_scores=style.hide_scores or part == 'gt')
        look = prediction, self._classes, self._palette
        return with_legend(draw_prediction(image, *look, style), *look)

    def _read(self, path: str, sample: object) -> np.ndarray:
        """RGB image of the size that the predictions are for; black where it cannot be read."""
        height, width = sample.ori_shape[:2]
        known = dict(img_path=path, height=height, width=width)
        try:
            image, _ = self._loader.read(known)
        except BadImageError:  # the test's log names it
            return np.zeros((height, width, 3), np.uint8)
        return np.ascontiguousarray(as_picture(image))


def _picture_names(paths: list[str], keep_suffix: bool) -> dict[str, str]:
    """For each image the name of its picture, in the sub-folder of the image.

    A PNG, or with ``keep_suffix`` the image's own kind where that can be written.
    """
    full = {path: os.path.abspath(path) for path in sorted(set(paths))}
    root = os.path.commonpath(map(os.path.dirname, full.values())) if full else ''
    names = {path: Path(os.path.relpath(file, root)) for path, file in full.items()}
    stems = Counter(name.with_suffix('') for name in names.values())
    return {
        path: str(name)
        if keep_suffix and name.suffix.lower() in _WRITTEN
        else f'{name if stems[name.with_suffix("")] > 1 else name.with_suffix("")}.png'
        for path, name in names.items()
    }
