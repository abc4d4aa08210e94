"""mmseg's metric, as our configs use it, against numpy, on real labels and predictions of them.

The predictions that come with the sample are equal to its labels in every pixel, so that their
figures are 100. To have others as well, the same predictions moved by four pixels are evaluated.
"""

import numpy as np
import pytest
import torch
from paths import SHARED, needs_data
from PIL import Image

SAMPLE = SHARED / 'data' / 'ade20k_sample'
NUM_CLASSES = 150
#: By how many pixels the predictions are moved: mIoU, mean and pixel accuracy in percent.
FIGURES = {0: (100.0, 100.0, 100.0), 4: (78.55, 84.69, 96.66)}


@needs_data
@pytest.mark.parametrize('moved', FIGURES)
def test_the_metric_gives_what_numpy_gives(moved):
    metrics = pytest.importorskip('mmseg.evaluation.metrics')
    metric = metrics.IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=[str(i) for i in range(NUM_CLASSES)])
    confusion = np.zeros((NUM_CLASSES + 1, NUM_CLASSES + 1), np.int64)
    for path in sorted((SAMPLE / 'annotations' / 'validation').glob('*.png')):
        # In the files, 0 is ignored and 1 to 150 are the classes.
        predicted = np.roll(np.asarray(Image.open(SAMPLE / 'predictions' / path.name)), moved, 1)
        label = np.asarray(Image.open(path))
        np.add.at(confusion, (label[label > 0], predicted[label > 0]), 1)
        sample = dict(
            pred_sem_seg=dict(data=torch.from_numpy(predicted.astype(int) - 1)[None]),
            gt_sem_seg=dict(
                data=torch.from_numpy(np.where(label, label.astype(int) - 1, 255))[None]
            ),
        )
        metric.process({}, [sample])
    found = metric.compute_metrics(metric.results)
    right, labelled = np.diag(confusion)[1:], confusion.sum(axis=1)[1:]
    with np.errstate(invalid='ignore'):  # of classes that neither occur nor are predicted
        iou = right / (labelled + confusion.sum(axis=0)[1:] - right)
        accuracy = right / labelled
    expected = np.nanmean(iou), np.nanmean(accuracy), right.sum() / labelled.sum()
    for name, value, stated in zip(('mIoU', 'mAcc', 'aAcc'), expected, FIGURES[moved]):
        assert found[name] == pytest.approx(100 * value, abs=0.0051)  # mmseg rounds to two digits
        assert round(100 * value, 2) == stated
