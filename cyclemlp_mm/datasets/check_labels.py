"""A pipeline step for segmentation labels of one's own data."""

from __future__ import annotations

import numpy as np
from mmengine.registry import TRANSFORMS

from cyclemlp_mm.errors import UserError

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
            rule, ignored = f'0 to {self.num_classes - 1}', f'{self.ignore_index} (ignore)'
            if results.get('reduce_zero_label'):  # named as in the file, before 0 was taken off
                stray = [label + 1 for label in stray]
                rule, ignored = '0 (ignore)', f'1 to {self.num_classes}'
            elif self.ignore_label is not None:
                rule += f', {self.ignore_label}'
            what = f'labels {stray[:10]} name no class; with {self.num_classes} classes, labels are'
            fix = 'Is a class name missing, or is one of these to be ignored (--ignore-label)?'
            raise UserError(f'{path}: {what} {rule} and {ignored}. {fix}')
        return results

    def __repr__(self) -> str:
        return f'CheckLabels({self.num_classes}, {self.ignore_label}, {self.ignore_index})'
