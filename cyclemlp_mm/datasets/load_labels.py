"""Loading of label images, and of those that mmseg's ``LoadAnnotations`` cannot take."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine.registry import TRANSFORMS
from PIL import Image

from .check_labels import CheckLabels
from .image_files import BadImageError, check_regular, image_facts, read_file

#: Set in the results of an image whose label image cannot be read.
UNREADABLE = 'labels_are_unreadable'
#: mmseg's label of what counts neither in a loss nor in a metric.
IGNORED = 255


class LoadCheckedLabels:
    """mmseg's ``LoadAnnotations`` for labels with a side of one pixel, and for none.

    mmseg squeezes what it has read: a side of one pixel is gone after it, and a label image of
    1×1 is no array any more and raises. Such an image is handed to it at twice its size. Where
    ``results`` say that the labels cannot be read (:class:`.load_image.LoadCheckedImage` in
    evaluation), all pixels are ignored.

    Args:
        transform (LoadAnnotations): The transform to stand for, mmseg's.
        check (CheckLabels, optional): Stops on labels that name no class. Defaults to None.
    """

    def __init__(self, transform: object, check: CheckLabels | None = None) -> None:
        self.transform = transform
        self.check = check

    def __call__(self, results: dict) -> dict:
        """Load ``results['seg_map_path']`` into ``gt_seg_map``, uint8 (H, W).

        Args:
            results (dict): Of mmseg; ``ori_shape`` of the image is the size of its label image too.

        Raises:
            BadImageError: The labels are a pipe, a socket or a device.
            UserError: A label names no class.
        """
        results = self._load(results)
        return self.check(results) if self.check is not None else results

    def _load(self, results: dict) -> dict:
        if results.pop(UNREADABLE, False):
            results['gt_seg_map'] = np.full(results['ori_shape'], IGNORED, np.uint8)
            results['seg_fields'].append('gt_seg_map')
            return results
        check_regular(results['seg_map_path'])
        if min(results.get('ori_shape', (2,))) > 1:
            return self.transform(results)
        path = results['seg_map_path']
        with tempfile.TemporaryDirectory() as folder, Image.open(path) as labels:
            doubled = str(Path(folder, 'labels.png'))
            labels.resize((2 * labels.width, 2 * labels.height), Image.NEAREST).save(doubled)
            results = self.transform({**results, 'seg_map_path': doubled})
        results['seg_map_path'] = path
        results['gt_seg_map'] = np.ascontiguousarray(results['gt_seg_map'][::2, ::2])
        return results

    def __repr__(self) -> str:
        return f'LoadCheckedLabels({self.transform})'


def loads_label_images(step: object) -> bool:
    """Whether a transform is mmseg's ``LoadAnnotations``, which decodes label images."""
    return isinstance(step, LoadCheckedLabels) or (
        type(step).__name__ == 'LoadAnnotations' and type(step).__module__.startswith('mmseg')
    )


def label_step(dataset: dict) -> object:
    """The step of a segmentation data set's pipeline that loads labels, built; mmseg's if none is.

    Args:
        dataset (dict): Config of a data set; mmseg must be the default scope.
    """

    def find(steps: object) -> dict | None:
        for step in steps if isinstance(steps, (list, tuple)) else ():
            if isinstance(step, (list, tuple)):  # of TestTimeAug
                found = find(step)
            elif str(step.get('type')).rpartition('.')[2].startswith('Load') and (
                'Image' not in str(step.get('type'))
            ):
                found = step
            else:
                found = find(step.get('transforms'))
            if found:
                return found
        return None

    step = TRANSFORMS.build(dict(find(dataset.get('pipeline')) or dict(type='LoadAnnotations')))
    return LoadCheckedLabels(step) if loads_label_images(step) else step


def label_reader(dataset: dict) -> Callable[[dict], np.ndarray]:
    """What reads labels as a data set's pipeline does.

    Args:
        dataset (dict): Config of a data set; mmseg must be the default scope.

    Returns:
        Callable: From the data set's info of an image to its labels, uint8 (H, W): class indices,
        255 where they are ignored.
    """
    step = label_step(dataset)
    checks = [
        TRANSFORMS.build(one)
        for one in dataset.get('pipeline') or ()
        if one.get('type') == 'CheckLabels'
    ]

    def read(info: dict) -> np.ndarray:
        results = {**info, 'seg_fields': []}
        if isinstance(step, LoadCheckedLabels):
            facts = image_facts(read_file(info['seg_map_path']), info['seg_map_path'])
            results['ori_shape'] = facts.height, facts.width
        for transform in (step, *checks):
            results = transform(results)
        return results['gt_seg_map']

    return read


def stored_labels(step: object, info: dict) -> np.ndarray:
    """Labels as the file has them, before anything is taken off or mapped.

    Args:
        step (object): Of :func:`label_step`.
        info (dict): The data set's info of an image.

    Returns:
        numpy.ndarray: Integers (H, W), of any size; colours are (H, W, C). Of other steps than
        mmseg's own: what they make of the file.

    Raises:
        BadImageError: It cannot be read.
    """
    path = info['seg_map_path']
    check_regular(path)
    try:
        if not isinstance(step, LoadCheckedLabels):
            return step({**info, 'seg_fields': []})['gt_seg_map']
        import mmcv  # not needed by the bare package

        content = read_file(path, step.transform.backend_args)
        image_facts(content, path)
        labels = mmcv.imfrombytes(
            content, flag='unchanged', backend=step.transform.imdecode_backend
        )
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, BadImageError):
            raise
        raise BadImageError(f'{path} cannot be read ({error})') from error
    if labels is None:
        raise BadImageError(f'{path} cannot be decoded')
    return labels[..., 0] if labels.ndim == 3 and labels.shape[2] == 1 else labels
