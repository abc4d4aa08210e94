"""mmseg's metric, as our configs use it, against numpy, on real labels and another's predictions."""

import numpy as np
import pytest
import torch
from paths import SHARED, needs_data
from PIL import Image

SAMPLE = SHARED / 'data' / 'ade20k_sample'
NUM_CLASSES = 150
#: mIoU, mean accuracy, pixel accuracy in percent, by the numpy below.
FIGURES = (100.0, 100.0, 100.0)


def pairs():
    """(predictions, labels) of each image, as in the files: 0 is ignored, 1 to 150 are classes."""
    for path in sorted((SAMPLE / 'annotations' / 'validation').glob('*.png')):
        yield np.asarray(Image.open(SAMPLE / 'predictions' / path.name)), np.asarray(
            Image.open(path))  # fmt: skip


def by_numpy():
    """From one confusion matrix; classes that neither occur nor are predicted do not count."""
    confusion = np.zeros((NUM_CLASSES + 1, NUM_CLASSES + 1), np.int64)
    for predicted, label in pairs():
        valid = label > 0
        np.add.at(confusion, (label[valid], predicted[valid]), 1)
    right = np.diag(confusion)[1:]
    labelled, predicted = confusion.sum(axis=1)[1:], confusion.sum(axis=0)[1:]
    with np.errstate(invalid='ignore'):
        iou = right / (labelled + predicted - right)
        accuracy = right / labelled
    return (
        100 * np.nanmean(iou), 100 * np.nanmean(accuracy), 100 * right.sum() / labelled.sum()
    )  # fmt: skip


@needs_data
def test_the_metric_gives_what_numpy_gives():
    metrics = pytest.importorskip('mmseg.evaluation.metrics')
    metric = metrics.IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=[str(i) for i in range(NUM_CLASSES)])
    for predicted, label in pairs():
        shifted = np.where(label == 0, 255, label.astype(int) - 1)
        sample = dict(
            pred_sem_seg=dict(data=torch.from_numpy(predicted.astype(int) - 1)[None]),
            gt_sem_seg=dict(data=torch.from_numpy(shifted)[None]),
        )
        metric.process({}, [sample])
    found = metric.compute_metrics(metric.results)
    expected = by_numpy()
    print('mIoU, mAcc, aAcc:', *(f'{value:.2f}' for value in expected))
    for name, value, stated in zip(('mIoU', 'mAcc', 'aAcc'), expected, FIGURES):
        assert found[name] == pytest.approx(value, abs=0.0051)  # mmseg rounds to two digits
        assert round(value, 2) == stated
