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


def pairs(moved):
    """(predictions, labels) of each image, as in the files: 0 is ignored, 1 to 150 are classes."""
    for path in sorted((SAMPLE / 'annotations' / 'validation').glob('*.png')):
        predicted = np.asarray(Image.open(SAMPLE / 'predictions' / path.name))
        yield np.roll(predicted, moved, axis=1), np.asarray(Image.open(path))


def by_numpy(moved):
    """From one confusion matrix; classes that neither occur nor are predicted do not count."""
    confusion = np.zeros((NUM_CLASSES + 1, NUM_CLASSES + 1), np.int64)
    for predicted, label in pairs(moved):
        valid = label > 0
        np.add.at(confusion, (label[valid], predicted[valid]), 1)
    right = np.diag(confusion)[1:]
    labelled, predicted = confusion.sum(axis=1)[1:], confusion.sum(axis=0)[1:]
    with np.errstate(invalid='ignore'):
        iou = right / (labelled + predicted - right)
        accuracy = right / labelled
    return (100 * np.nanmean(iou), 100 * np.nanmean(accuracy), 100 * right.sum() / labelled.sum())


@needs_data
@pytest.mark.parametrize('moved', FIGURES)
def test_the_metric_gives_what_numpy_gives(moved):
    metrics = pytest.importorskip('mmseg.evaluation.metrics')
    metric = metrics.IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=[str(i) for i in range(NUM_CLASSES)])
    for predicted, label in pairs(moved):
        shifted = np.where(label == 0, 255, label.astype(int) - 1)
        sample = dict(
            pred_sem_seg=dict(data=torch.from_numpy(predicted.astype(int) - 1)[None]),
            gt_sem_seg=dict(data=torch.from_numpy(shifted)[None]),
        )
        metric.process({}, [sample])
    found = metric.compute_metrics(metric.results)
    expected = by_numpy(moved)
    print('mIoU, mAcc, aAcc:', *(f'{value:.2f}' for value in expected))
    for name, value, stated in zip(('mIoU', 'mAcc', 'aAcc'), expected, FIGURES[moved]):
        assert found[name] == pytest.approx(value, abs=0.0051)  # mmseg rounds to two digits
        assert round(value, 2) == stated
