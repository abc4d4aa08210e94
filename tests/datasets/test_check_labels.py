import numpy as np
import pytest

from cyclemlp_mm.datasets import CheckLabels
from cyclemlp_mm.errors import UserError


def run(labels, num_classes=3, ignore_label=None, reduce_zero_label=False):
    results = dict(
        gt_seg_map=np.array(labels, np.uint8),
        seg_map_path='a/b.png',
        reduce_zero_label=reduce_zero_label,
    )
    return CheckLabels(num_classes, ignore_label)(results)['gt_seg_map'].tolist()


def test_ignored_labels_become_255():
    assert run([[0, 1, 2, 11, 255]], ignore_label=11) == [[0, 1, 2, 255, 255]]


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({}, r'a/b\.png: labels \[7\] name no class.*labels are 0 to 2 and 255'),
        (dict(ignore_label=11), 'labels are 0 to 2, 11 and 255'),
        (dict(reduce_zero_label=True), r'labels \[8\] name no class.*0 \(ignore\) and 1 to 3'),
    ],
)
def test_stray_labels_are_named_as_in_the_file(kwargs, message):
    with pytest.raises(UserError, match=message):
        run([[0, 7]], **kwargs)


def test_colour_labels_are_refused():
    with pytest.raises(UserError, match='one channel'):
        run(np.zeros((4, 4, 3)))


def test_passes_through_where_there_are_no_labels():
    assert CheckLabels(3)(dict(img=1)) == dict(img=1)
