"""What a test reports of each class."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cyclemlp_mm.engine.per_class import MOST_CLASSES, ConfusionMatrix, add_per_class_results

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [60, 60, 70, 70]])


def counted(samples, path, classes=('a', 'b')):
    metric = ConfusionMatrix(path / 'matrix.png')
    metric.dataset_meta = dict(classes=classes)
    for sample in samples:
        metric.process(None, [sample])
    assert metric.evaluate(len(samples)) == {}
    return metric.matrix


def test_boxes(tmp_path):
    """Right, of another class, missed, double, below the score, too far off, on an ignored box."""
    truth = dict(bboxes=BOXES[:3], labels=torch.tensor([0, 1, 1]))
    found = [(0, 0, 0.9), (0, 0, 0.8), (1, 0, 0.7), (2, 1, 0.29), (3, 1, 0.6)]
    which, labels, scores = zip(*found, strict=True)
    boxes = torch.cat([BOXES[list(which)], torch.tensor([[46.0, 40, 56, 50]])])
    pred = dict(
        bboxes=boxes, labels=torch.tensor([*labels, 1]), scores=torch.tensor([*scores, 0.5])
    )
    sample = dict(gt_instances=truth, pred_instances=pred)
    # rows: a, b, background; columns: a, b, missed
    assert counted([sample], tmp_path).tolist() == [[1, 0, 0], [1, 0, 1], [1, 2, 0]]
    sample['ignored_instances'] = dict(bboxes=BOXES[3:], labels=torch.tensor([0]))
    assert counted([sample], tmp_path).tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]
    assert (tmp_path / 'matrix.png').stat().st_size > 1000


def test_the_best_score_takes_the_box(tmp_path):
    truth = dict(bboxes=BOXES[:1], labels=torch.tensor([0]))
    pred = dict(bboxes=BOXES[[0, 0]], labels=torch.tensor([1, 0]), scores=torch.tensor([0.5, 0.9]))
    matrix = counted([dict(gt_instances=truth, pred_instances=pred)], tmp_path)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize('missing', ['found', 'truth'])
def test_images_without_boxes(missing, tmp_path):
    some = dict(bboxes=BOXES[:1], labels=torch.tensor([1]), scores=torch.ones(1))
    none = {key: value[:0] for key, value in some.items()}
    truth, found = (some, none) if missing == 'found' else (none, some)
    matrix = counted([dict(gt_instances=truth, pred_instances=found)], tmp_path)
    assert matrix.sum() == 1 and (matrix[1, 2] if missing == 'found' else matrix[2, 1]) == 1


def test_pixels_and_images(tmp_path):
    truth, found = torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 1, 1, 1]])
    sample = dict(gt_sem_seg=dict(data=truth[None]), pred_sem_seg=dict(data=found[None]))
    assert counted([sample, sample], tmp_path).tolist() == [[2, 2], [0, 2]]
    samples = [
        dict(gt_label=torch.tensor([t]), pred_label=torch.tensor([f])) for t, f in ((0, 1),) * 3
    ]
    assert counted(samples, tmp_path).tolist() == [[0, 3], [0, 0]]


def test_a_head_with_more_classes_than_the_data(tmp_path):
    sample = dict(gt_label=torch.tensor([0]), pred_label=torch.tensor([999]))
    right = dict(gt_label=torch.tensor([0]), pred_label=torch.tensor([0]))
    assert counted([sample, right], tmp_path).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    'sample',
    [
        dict(pred_label=torch.tensor([0])),
        dict(gt_label=torch.tensor([0, 1]), pred_label=torch.tensor([0])),
        # mmdet's, where the pipeline loads no annotations
        dict(gt_instances={}, pred_instances=dict(bboxes=BOXES, labels=torch.zeros(4))),
        dict(pred_sem_seg=dict(data=torch.zeros(1, 2, 2))),
    ],
)
def test_without_ground_truth_nothing_is_drawn(sample, tmp_path):
    assert counted([sample], tmp_path) is None
    assert not (tmp_path / 'matrix.png').exists()


def test_many_classes_with_long_names(tmp_path):
    classes = tuple(f'{"a very long name of a class "}{i}' for i in range(60))
    labels = np.arange(60)
    samples = [dict(gt_label=torch.tensor([i]), pred_label=torch.tensor([i])) for i in labels]
    assert np.array_equal(counted(samples, tmp_path, classes), np.eye(60))


@pytest.mark.parametrize('number, has_matrix', [(1, 0), (2, 1), (MOST_CLASSES + 1, 0)])
def test_a_test_gets_both(number, has_matrix, tmp_path):
    names = dict(classes=tuple(map(str, range(number))))
    metric = SimpleNamespace(classwise=False)
    loop = SimpleNamespace(
        evaluator=SimpleNamespace(metrics=[metric]),
        dataloader=SimpleNamespace(dataset=SimpleNamespace(metainfo=names)),
    )
    add_per_class_results(SimpleNamespace(test_loop=loop, work_dir=tmp_path))
    assert metric.classwise and len(loop.evaluator.metrics) == 1 + has_matrix
