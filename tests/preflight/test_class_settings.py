"""Settings that belong to a number of classes, or to the label of what is ignored."""

import numpy as np
import pytest
from mmengine.config import Config

from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.model import check_ignore_index, check_num_classes


def said(check, cfg, *args):
    report = Report()
    check(report, Config(cfg), *args)
    return [str(finding) for finding in report.of('error')]


@pytest.mark.parametrize(
    'key, loss, expected',
    [
        ('loss_decode', dict(class_weight=[1.0] * 3), None),
        ('loss_decode', dict(class_weight=[1.0] * 4), 'Write 3 weights'),
        ('loss_decode', dict(use_sigmoid=True, class_weight=[1.0, 2.0]), 'has 2 weights, but'),
        ('loss_decode', [{}, dict(class_weight=[1.0])], r'loss_decode[1].class_weight'),
        ('loss', dict(pos_weight=[1.0] * 4), 'loss.pos_weight: has 4 weights'),
        ('loss_cls', dict(class_weight=[1.0] * 4), None),  # one for the background
        ('loss_cls', dict(class_weight=[1.0] * 3), 'Write 4 weights'),
        ('loss_cls', dict(use_sigmoid=True, class_weight=[1.0] * 3), None),
        ('loss_decode', dict(class_weight='no_such_file.npy'), None),  # found when it is built
        ('loss_cls', dict(class_weight=1.0), None),
    ],
)
def test_class_weights(key, loss, expected):
    found = said(check_num_classes, dict(model=dict(head=dict(num_classes=3, **{key: loss}))), 3)
    assert [expected in one for one in found] == [True] * bool(expected)


@pytest.mark.parametrize('name', ['w.json', 'w.npy'])
def test_class_weights_of_a_file(name, tmp_path):
    pytest.importorskip('mmseg')
    np.save(tmp_path / 'w.npy', np.ones(2))
    (tmp_path / 'w.json').write_text('[1, 1]')
    head = dict(num_classes=3, loss_decode=dict(class_weight=str(tmp_path / name)))
    [found] = said(check_num_classes, dict(model=dict(head=head)), 3)
    assert 'has 2 weights' in found and 'Write 3 weights' in found


def test_heads_of_other_classes_are_not_compared():
    model = dict(
        teacher=dict(head=dict(num_classes=9, loss=dict(class_weight=[1.0]))),
        rpn_head=dict(num_classes=1),
        head=dict(num_classes=3),
    )
    assert said(check_num_classes, dict(model=model), 3) == []


LABELS = dict(type='CheckLabels', num_classes=3, ignore_label=11)


@pytest.mark.parametrize(
    'head, dataset, metric, expected',
    [
        (dict(ignore_index=11), dict(pipeline=[LABELS]), {}, 'model.decode_head.ignore_index'),
        (dict(ignore_index=0), dict(reduce_zero_label=True), {}, 'is 0, but reduce_zero_label'),
        ({}, dict(pipeline=[LABELS]), dict(ignore_index=11), 'val_evaluator.ignore_index'),
        (dict(loss_decode=[dict(ignore_label=3)]), dict(pipeline=[LABELS]), {}, 'ignore_label'),
        (dict(ignore_index=11), {}, {}, None),  # the labels' own
        (dict(ignore_index=255), dict(pipeline=[LABELS]), dict(ignore_index=255), None),
        (dict(ignore_index=None), dict(pipeline=[LABELS]), {}, None),
    ],
)
def test_the_label_that_is_ignored(head, dataset, metric, expected):
    cfg = dict(
        default_scope='mmseg',
        model=dict(decode_head=head),
        train_dataloader=dict(dataset=dataset),
        val_evaluator=metric,
    )
    found = said(check_ignore_index, cfg)
    assert [expected in one for one in found] == [True] * bool(expected)
