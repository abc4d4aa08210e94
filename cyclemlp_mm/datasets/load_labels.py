"""Loading of label images in place of mmseg's ``LoadAnnotations``, in training and in the check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mmengine.registry import TRANSFORMS

from cyclemlp_mm.errors import UserError

from .check_labels import IGNORE_INDEX, CheckLabels
from .image_files import BadImageError, check_regular, image_facts, read_file
from .image_notes import NotingStep


class LoadCheckedLabels(NotingStep):
    """Loads label images as mmseg's ``LoadAnnotations``, also broken ones and those of 1×N pixels.

    mmseg squeezes what it has read, which loses a side of one pixel, and raises for 1×1. Where the
    labels cannot be read, the image is replaced by another one in training; in evaluation all of
    its pixels are ignored.

    Args:
        transform (LoadAnnotations): mmseg's step, whose settings are used.
        is_evaluation (bool): See above. Defaults to False.
        check (CheckLabels, optional): Stops on labels that name no class. Defaults to None.
    """

    def __init__(
        self, transform: object, is_evaluation: bool = False, check: CheckLabels | None = None
    ) -> None:
        super().__init__()
        self.transform = transform
        self.is_evaluation = is_evaluation
        self.check = check

    def __call__(self, results: dict) -> dict | None:
        """Load ``results['seg_map_path']`` into ``gt_seg_map``, uint8 (H, W).

        Raises:
            UserError: A label names no class, or many files in a row cannot be read.
        """
        path = str(results.get('img_path'))
        try:
            labels = self.read(results)
        except BadImageError as error:
            self.note_skipped(path, error)
            if not self.is_evaluation:
                return None
            labels = np.full(results['ori_shape'], IGNORE_INDEX, np.uint8)
        else:
            self.note_read(path)
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')
        return results if self.check is None else self.check(results)

    def read(self, info: dict) -> np.ndarray:
        """Labels of ``info['seg_map_path']``, uint8 (H, W), after ``reduce_zero_label`` and
        ``label_map``.

        Raises:
            BadImageError: They cannot be read.
        """
        reduces = bool(info.get('reduce_zero_label'))
        if self.transform.reduce_zero_label not in (None, reduces):
            raise UserError(
                f'LoadAnnotations has reduce_zero_label={self.transform.reduce_zero_label}, but '
                f'the data set {reduces}: leave it out of LoadAnnotations'
            )
        reduced = np.arange(256)
        if reduces:
            reduced -= 1
            reduced[[0, 255]] = IGNORE_INDEX
        mapped = reduced.copy()
        for old, new in (info.get('label_map') or {}).items():
            mapped[reduced == old] = new
        return mapped.astype(np.uint8)[stored_labels(self, info).astype(np.uint8)]

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
            name = '' if isinstance(step, (list, tuple)) else str(step.get('type'))
            name = name.rpartition('.')[2]
            if name.startswith('Load') and 'Image' not in name:
                return step
            found = find(step.get('transforms') if name else step)  # lists are of TestTimeAug
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
    pipeline = dataset.get('pipeline') or ()
    checks = [TRANSFORMS.build(one) for one in pipeline if one.get('type') == 'CheckLabels']

    def read(info: dict) -> np.ndarray:
        results = {**info, 'seg_fields': []}
        if isinstance(step, LoadCheckedLabels):
            results['gt_seg_map'] = step.read(info)
        else:
            results = step(results)
        for check in checks:
            results = check(results)
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

        settings = step.transform
        content = read_file(path, settings.backend_args)
        image_facts(content, path)
        labels = mmcv.imfrombytes(content, flag='unchanged', backend=settings.imdecode_backend)
    except BadImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadImageError(f'{path} cannot be read ({error})') from error
    if labels is None:
        raise BadImageError(f'{path} cannot be decoded')
    return labels[..., 0] if labels.ndim == 3 and labels.shape[2] == 1 else labels
