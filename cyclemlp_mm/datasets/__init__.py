"""Data: checked annotations, label checks for training, and the generator of demo data."""

from mmengine.registry import DATASETS, METRICS

from .corrupt import CorruptImage
from .load_labels import CheckLabels

__all__ = ['CheckLabels', 'CorruptImage', 'checked_coco_dataset', 'checked_coco_metric']


# Functions, as the classes need mmdet, which importing this package must not; once they are
# imported, mmdet's registries have them under the same names and come first.
@DATASETS.register_module('CheckedCocoDataset')
def checked_coco_dataset(**settings: object) -> object:
    """Build a :class:`cyclemlp_mm.datasets.checked_coco.CheckedCocoDataset`."""
    from .checked_coco import CheckedCocoDataset

    return CheckedCocoDataset(**settings)


@METRICS.register_module('CheckedCocoMetric')
def checked_coco_metric(**settings: object) -> object:
    """Build a :class:`cyclemlp_mm.datasets.checked_coco.CheckedCocoMetric`."""
    from .checked_coco import CheckedCocoMetric

    return CheckedCocoMetric(**settings)
