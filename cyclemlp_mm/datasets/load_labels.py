"""Label images: loaded in place of mmseg's ``LoadAnnotations``, and checked."""

import re
from collections.abc import Iterator

import numpy as np
from mmengine.registry import TRANSFORMS

from cyclemlp_mm.errors import UserError

from .image_files import BadImageError, check_regular, image_facts, read_file
from .image_notes import CheckedStep

IGNORE_INDEX = 255  # what mmseg's losses and metrics leave out


@TRANSFORMS.register_module()
class CheckLabels:
    """Turns the data's own ignore label into mmseg's, and stops on labels that name no class.

    Stands right after ``LoadAnnotations``. Without it, a stray label reaches the loss as an index
    outside its range: a crash inside a kernel on a GPU, or a nan accuracy; metrics leave it out.

    Args:
        num_classes (int): Number of classes; labels 0 to ``num_classes - 1`` name one.
        ignore_label (int, optional): Label of pixels to leave out, besides ``ignore_index``, which
            it becomes. Defaults to None.
        ignore_index (int): What the loss or the metric leaves out. Defaults to 255.
    """

    def __init__(
        self, num_classes: int, ignore_label: int | None = None, ignore_index: int = IGNORE_INDEX
    ) -> None:
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.ignore_index = ignore_index

    def __call__(self, results: dict) -> dict:
        """Change ``results['gt_seg_map']``, uint8 (H, W), in place; a UserError names file and
        labels.
        """
        labels, path = results.get('gt_seg_map'), results.get('seg_map_path')
        if labels is None:  # inference has no labels
            return results
        if labels.ndim != 2:
            what = f'a label image has one channel, but this one is {labels.shape}'
            raise UserError(f'{path}: {what}: save label indices, not colours')
        if self.ignore_label is not None:
            labels[labels == self.ignore_label] = self.ignore_index
        found = np.flatnonzero(np.bincount(labels.ravel()))
        stray = [int(i) for i in found if i >= self.num_classes and i != self.ignore_index]
        if stray:
            first = int(bool(results.get('reduce_zero_label')))  # named as in the file, not less 1
            what = f'labels {[label + first for label in stray[:10]]} name no class'
            what += f'; the classes are {first} to {self.num_classes - 1 + first}'
            fix = 'Is a class name missing, or is one of these to be ignored (--ignore-label)?'
            raise UserError(f'{path}: {what}. {fix}')
        return results


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

    def table(self, results: dict) -> np.ndarray:
        """Labels (256,) of stored values, after ``reduce_zero_label`` and ``label_map``.

        Raises:
            UserError: Step and data set have different ``reduce_zero_label``.
        """
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
        return mapped.astype(np.uint8)

    def read(self, results: dict) -> tuple[np.ndarray, list[str]]:
        """Labels by :meth:`table`, without notes; numbers over 255 are a UserError."""
        stored = stored_labels(self, results)
        labels = stored.astype(np.uint8)
        if labels.dtype != stored.dtype and (wrong := stored[labels != stored]).size:
            what = f'has the label {wrong.flat[0]}, but labels are whole numbers from 0 to 255'
            raise UserError(f'{results["seg_map_path"]} {what}')
        return self.table(results)[labels], []

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
