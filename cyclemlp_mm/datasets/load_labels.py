"""Loading of label images in place of mmseg's ``LoadAnnotations``, in training and in the check."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
from mmengine.registry import TRANSFORMS

from cyclemlp_mm.errors import UserError

from .check_labels import IGNORE_INDEX, CheckLabels
from .image_files import BadImageError, check_regular, image_facts, read_file
from .image_notes import CheckedStep


class LoadCheckedLabels(CheckedStep):
    """Loads label images as mmseg's ``LoadAnnotations``: ``gt_seg_map``, uint8 (H, W).

    mmseg squeezes what it has read, which loses a side of one pixel, and raises for 1×1. Where the
    labels cannot be read, in evaluation, all pixels of the image are ignored.
    """

    def __init__(
        self, transform: object, is_evaluation: bool = False, check: CheckLabels | None = None
    ) -> None:
        super().__init__(transform, is_evaluation)
        self.check = check

    def read(self, results: dict) -> tuple[np.ndarray, list[str]]:
        """Labels after ``reduce_zero_label`` and ``label_map``; nothing is noted about them."""
        reduces, own = bool(results.get('reduce_zero_label')), self.transform.reduce_zero_label
        if own not in (None, reduces):
            what = f'LoadAnnotations has reduce_zero_label={own}, but the data set {reduces}'
            raise UserError(f'{what}: leave it out of LoadAnnotations')
        reduced = np.arange(256)
        if reduces:
            reduced -= 1
            reduced[[0, 255]] = IGNORE_INDEX
        mapped = reduced.copy()
        for old, new in (results.get('label_map') or {}).items():
            mapped[reduced == old] = new
        return mapped.astype(np.uint8)[stored_labels(self, results).astype(np.uint8)], []

    def put(self, results: dict, labels: np.ndarray) -> dict:
        """Put labels into the results, and check them."""
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')
        return results if self.check is None else self.check(results)

    def stand_in(self, results: dict, error: BadImageError) -> dict:
        """Labels that are ignored everywhere."""
        return self.put(results, np.full(results['ori_shape'], IGNORE_INDEX, np.uint8))


def loads_label_images(step: object) -> bool:
    """Whether a transform is mmseg's ``LoadAnnotations``, which decodes label images."""
    return isinstance(step, LoadCheckedLabels) or (
        type(step).__name__ == 'LoadAnnotations' and type(step).__module__.startswith('mmseg')
    )


def label_step(dataset: dict) -> object:
    """The step of a data set's config that loads labels, built; mmseg's where it has none."""

    def steps(node: object) -> Iterator[dict]:
        if isinstance(node, dict):
            yield node
            node = node.get('transforms')  # of TestTimeAug, lists of lists
        for part in node if isinstance(node, (list, tuple)) else ():
            yield from steps(part)

    loads = re.compile(r'(.*\.)?Load(?!.*Image)')
    found = (s for s in steps(dataset.get('pipeline')) if loads.match(str(s.get('type'))))
    step = TRANSFORMS.build(dict(next(found, dict(type='LoadAnnotations'))))
    return LoadCheckedLabels(step) if loads_label_images(step) else step


def label_reader(dataset: dict) -> Callable[[dict], np.ndarray]:
    """A function from a data set's info of an image to its labels, as its pipeline reads them.

    They are uint8 (H, W): class indices, 255 where they are ignored. mmseg must be the scope.
    """
    pipeline = dataset.get('pipeline') or ()
    checks = [TRANSFORMS.build(one) for one in pipeline if one.get('type') == 'CheckLabels']
    step = label_step(dataset)

    def read(info: dict) -> np.ndarray:
        results = {**info, 'seg_fields': []}
        if isinstance(step, LoadCheckedLabels):
            results = step.put(results, step.read(info)[0])
        else:
            results = step(results)
        for check in checks:
            results = check(results)
        return results['gt_seg_map']

    return read


def stored_labels(step: object, info: dict) -> np.ndarray:
    """Labels as the file has them, before anything is taken off or mapped; raises BadImageError.

    Integers (H, W), of any size; colours are (H, W, C). Of other steps: what they make of the file.
    """
    path, labels = info['seg_map_path'], None
    check_regular(path)
    try:
        if not isinstance(step, LoadCheckedLabels):
            return step({**info, 'seg_fields': []})['gt_seg_map']
        import mmcv  # not needed by the bare package

        content = read_file(path, step.transform.backend_args)
        image_facts(content, path)
        labels = mmcv.imfrombytes(content, 'unchanged', backend=step.transform.imdecode_backend)
    except BadImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadImageError(f'{path} cannot be read ({error})') from error
    if labels is None:
        raise BadImageError(f'{path} cannot be decoded')
    return labels[..., 0] if labels.ndim == 3 and labels.shape[2] == 1 else labels
