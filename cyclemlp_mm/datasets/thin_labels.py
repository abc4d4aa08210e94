"""Label images with a side of one pixel, which mmseg's ``LoadAnnotations`` cannot take."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


class LoadThinLabels:
    """mmseg's ``LoadAnnotations`` that keeps both sides of a label image.

    mmseg squeezes what it has read: a side of one pixel is gone after it, and a label image of
    1×1 is no array any more and raises. Such an image is handed to it at twice its size.

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
        return f'LoadThinLabels({self.transform})'
