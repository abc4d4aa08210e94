"""Loading of label images that mmseg's ``LoadAnnotations`` cannot take."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

#: Set in the results of an image whose label image cannot be read.
UNREADABLE = 'labels_are_unreadable'
#: mmseg's label of what counts neither in a loss nor in a metric.
_IGNORED = 255


class LoadCheckedLabels:
    """mmseg's ``LoadAnnotations`` for labels with a side of one pixel, and for none.

    mmseg squeezes what it has read: a side of one pixel is gone after it, and a label image of
    1×1 is no array any more and raises. Such an image is handed to it at twice its size. Where
    ``results`` say that the labels cannot be read (:class:`.load_image.LoadCheckedImage` in
    evaluation), all pixels are ignored.

    Args:
        transform (LoadAnnotations): The transform to stand for, mmseg's.
    """

    def __init__(self, transform: object) -> None:
        self.transform = transform

    def __call__(self, results: dict) -> dict:
        """Load ``results['seg_map_path']`` into ``gt_seg_map``, uint8 (H, W).

        Args:
            results (dict): Of mmseg; ``ori_shape`` of the image is the size of its label image too.
        """
        if results.pop(UNREADABLE, False):
            results['gt_seg_map'] = np.full(results['ori_shape'], _IGNORED, np.uint8)
            results['seg_fields'].append('gt_seg_map')
            return results
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
