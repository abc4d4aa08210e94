"""Training and evaluation on one checked reading of the annotation file, by whatever ids and order.

Predictions are made by hand, so that the right figure is known.
"""

import gc
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS as ROOT
from mmengine.registry import init_default_scope

from cyclemlp_mm.datasets.coco_file import annotations_kept, decode_runs, mask_trouble, read_coco
from cyclemlp_mm.engine.summary import count_objects
from cyclemlp_mm.errors import UserError

pytest.importorskip('mmdet')
mask_tools = pytest.importorskip('pycocotools.mask')

from mmdet.registry import DATASETS, METRICS  # noqa: E402

SETTINGS = dict(type='CheckedCocoDataset', data_prefix=dict(img=''), pipeline=[])
CLASSES = ('cat', 'dog', 'eel')
BOXES = [[2, 2, 20, 20], [30, 4, 12, 16], [5, 40, 20, 12], [40, 40, 10, 10]]


def square(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def content():
    annotations = [
        dict(id=4 * i + j + 1, image_id=i + 1, category_id=1 + (i + j) % 3, iscrowd=0)
        | dict(bbox=box, area=box[2] * box[3], segmentation=square(*box))
        for i in range(3)
        for j, box in enumerate(BOXES)
    ]
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=64, height=64) for i in (1, 2, 3)],
        annotations=annotations,
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
    )


def each(key, **changes):
    """A change of all entries of a list: values of their number and what they are now."""

    def change(made):
        for number, entry in enumerate(made[key]):
            entry.update({name: value(number, entry.get(name)) for name, value in changes.items()})

    return change


def both(*changes):
    return lambda made: [change(made) for change in changes]


def drop(key, name):
    return lambda made: [entry.pop(name) for entry in made[key]]


def write(folder, change=None):
    file = folder / 'a.json'
    made = content()
    if change is not None:
        change(made)
    file.write_text(json.dumps(made))
    return str(file)


def build(file, classes=CLASSES, **settings):
    init_default_scope('mmdet')
    settings = dict(SETTINGS, ann_file=file, metainfo=dict(classes=classes)) | settings
    return DATASETS.build(Config(settings))


def evaluate(file, classes=CLASSES, names=None, metric='bbox', **settings):
    """Metrics of a model that finds every object of :func:`content`, with the names' labels."""
    init_default_scope('mmdet')
    metric = METRICS.build(dict(type='CheckedCocoMetric', ann_file=file, metric=metric, **settings))
    metric.dataset_meta = dict(classes=classes)
    truth = content()
    for old, image in zip(truth['images'], json.loads(Path(file).read_text())['images']):
        objects = [a for a in truth['annotations'] if a['image_id'] == old['id']]
        boxes = torch.tensor([a['bbox'] for a in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([classes.index(CLASSES[a['category_id'] - 1]) for a in objects])
        masks = torch.zeros(len(objects), 64, 64, dtype=torch.bool)
        for mask, (x, y, w, h) in zip(masks, (a['bbox'] for a in objects)):
            mask[y : y + h, x : x + w] = True
        found = dict(bboxes=boxes, scores=torch.ones(len(objects)), labels=labels, masks=masks)
        path = f'/data/{names or image["file_name"]}'
        sample = dict(img_id=image['id'], img_path=path, ori_shape=(64, 64), pred_instances=found)
        metric.process({}, [sample])
    return metric.evaluate(size=3)


@pytest.mark.parametrize(
    'change',
    [
        None,
        each('annotations', id=lambda n, i: n),
        each('annotations', id=lambda n, i: -n),
        each('annotations', id=lambda n, i: n if n % 2 else f'{n}x'),
        each('annotations', id=lambda n, i: 7),
        drop('annotations', 'iscrowd'),
        both(
            each('images', id=lambda n, i: f'i{i}'),
            each('annotations', image_id=lambda n, i: f'i{i}'),
        ),
        both(
            each('categories', id=lambda n, i: 90 - n),
            each('annotations', category_id=lambda n, i: 91 - i),
        ),
        both(
            each('categories', id=lambda n, i: float(i)),
            each('annotations', category_id=lambda n, i: float(i)),
        ),
        both(
            each('categories', id=lambda n, i: f'c{i}'),
            each('annotations', category_id=lambda n, i: f'c{i}'),
        ),
    ],
)
@pytest.mark.parametrize('classes', [CLASSES, ('dog', 'eel', 'cat')])
def test_ids_and_orders_do_not_change_the_figure(tmp_path, change, classes):
    file = write(tmp_path, change)
    found = evaluate(file, classes, classwise=True)
    assert found['coco/bbox_mAP'] == found['coco/cat_precision'] == 1
    names = [
        classes[one['bbox_label']] for one in build(file, classes).get_data_info(1)['instances']
    ]
    assert names == ['dog', 'eel', 'cat', 'dog']  # image 2 of content()


def test_figures_per_class_have_the_names_of_their_class(tmp_path):
    """Also where the ids of the categories are not sorted, as pycocotools sorts them."""

    def change(c):
        for category in c['categories']:
            category['id'] = 90 - category['id']
        for ann in c['annotations']:
            ann['category_id'] = 90 - ann['category_id']
            if ann['category_id'] == 89:  # cats are elsewhere: none is found
                ann['bbox'] = [1, 60, 3, 3]

    found = evaluate(write(tmp_path, change), CLASSES[::-1], classwise=True)
    assert [found[f'coco/{name}_precision'] for name in CLASSES] == [0, 1, 1]


@pytest.mark.parametrize(
    'change',
    [
        dict(bbox=[0, 0, 0, 0], area=0),
        dict(bbox=[9, 9, -4, 5]),
        dict(area=-3.0),
        dict(bbox=[900, 2, 5, 5]),
        dict(iscrowd=1),
        dict(ignore=True, iscrowd=0),
        dict(image_id=99),
        dict(category_id=99),
    ],
)
def test_what_is_not_learned_is_not_missed_either(tmp_path, change, log_lines):
    def add(c):
        extra = dict(c['annotations'][0], id=1000, bbox=[50, 5, 10, 10], area=100)
        c['annotations'].append(extra | change)

    file = write(tmp_path, add)
    for metric in ('bbox', 'segm'):
        assert evaluate(file, metric=metric)[f'coco/{metric}_mAP'] == 1
    learned = [one for one in build(file).get_data_info(0)['instances'] if not one['ignore_flag']]
    assert len(learned) == 4
    assert any('1 of its boxes' in line for line in log_lines)


@pytest.mark.parametrize(
    'change, said',
    [
        (each('images', id=lambda n, i: [1, 'b', 3][n]), 'ids of its images mix'),
        (each('images', id=lambda n, i: [-1, 2**63 + 1, 2**53 + 1][n]), 'ids of its im'),
        (
            each('annotations', category_id=lambda n, i: str(i)),
            'none of its boxes can be used: 12 have an unknown category id',
        ),
        (each('annotations', bbox=lambda n, b: [1, 2]), '"bbox" is not four'),
        (each('categories', name=lambda n, i: 'xyz'[n]), 'does not fit the annotation'),
    ],
)
def test_what_would_be_evaluated_wrongly_is_refused(tmp_path, change, said):
    file = write(tmp_path, change)
    for use in (evaluate, build):
        with pytest.raises(UserError, match=said):
            use(file)


def runs(x, y, w, h):
    mask = np.zeros((64, 64), np.uint8, order='F')
    mask[y : y + h, x : x + w] = 1
    flat = np.concatenate([[0], mask.ravel(order='F')])
    return np.diff([0, *np.flatnonzero(np.diff(flat)), 64 * 64]).tolist()


@pytest.mark.parametrize('as_text', [False, True])
def test_run_length_codes_that_end_early_are_never_decoded(tmp_path, as_text):
    def change(c, whole):
        for ann in c['annotations']:
            counts = runs(*ann['bbox'])
            counts = counts if whole else counts[:-1]
            if as_text:
                code = mask_tools.frPyObjects(dict(size=[64, 64], counts=counts), 64, 64)
                counts = code['counts'].decode()
            ann['segmentation'] = dict(size=[64, 64], counts=counts)

    file = write(tmp_path, lambda c: change(c, whole=True))
    assert evaluate(file, metric='segm')['coco/segm_mAP'] == 1
    file = write(tmp_path, lambda c: change(c, whole=False))
    with pytest.raises(UserError, match='"counts" end before the last pixel'):
        evaluate(file, metric='segm')
    assert evaluate(file)['coco/bbox_mAP'] == 1  # boxes need no masks, and no mask is passed on
    assert not any('mask' in one for one in build(file).get_data_info(0)['instances'])
    with pytest.raises(UserError, match='end before'):
        build(file, pipeline=[dict(type='LoadAnnotations', with_mask=True)])


@pytest.mark.parametrize('mask', [[[1, 2]], [[1, 2, 3, 4]], 'x', [[1, 'x', 3, 4, 5, 6]], {}])
def test_masks_that_nobody_asked_for_are_not_passed_on(tmp_path, mask):
    """Whoever reads the ground truth, as the gallery, decodes the others."""
    file = write(tmp_path, lambda c: c['annotations'][0].update(segmentation=mask))
    passed = ['mask' in one for one in build(file).get_data_info(0)['instances']]
    assert passed == [False, True, True, True]


@pytest.mark.parametrize(
    'change', [lambda c: c.pop('annotations'), lambda c: c['annotations'].clear()]
)
def test_a_list_of_test_images_without_annotations(tmp_path, change):
    """COCO's test-dev: predictions are written, and no figure is made of nothing."""
    file = write(tmp_path, change)
    assert len(build(file, test_mode=True)) == 3
    with pytest.raises(UserError, match=r'a\.json: "annotations" is empty or missing.*format_only'):
        evaluate(file)
    evaluate(file, format_only=True, outfile_prefix=str(tmp_path / 'found'))
    found = json.loads((tmp_path / 'found.bbox.json').read_text())
    assert len(found) == 12 and {one['category_id'] for one in found} == {1, 2, 3}


def test_another_file_than_the_loaders(tmp_path):
    with pytest.raises(UserError, match=r'evaluator reads .*a\.json, but image /data/other\.jpg'):
        evaluate(write(tmp_path), names='other.jpg')


def test_the_same_id_for_two_images(tmp_path):
    """As of two folders in a ConcatDataset, whose objects are in one file."""
    init_default_scope('mmdet')
    metric = METRICS.build(dict(type='CheckedCocoMetric', ann_file=write(tmp_path)))
    name = content()['images'][0]['file_name']
    found = dict(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0))
    with pytest.raises(UserError, match='have the same id'):
        for folder in ('one', 'two'):
            sample = dict(img_id=1, img_path=f'/{folder}/{name}', ori_shape=(64, 64))
            metric.process({}, [dict(sample, pred_instances=found)])


def test_images_that_were_not_predicted(tmp_path, log_lines):
    file = write(tmp_path)
    assert evaluate(file)['coco/bbox_mAP'] == 1
    assert not any('were predicted' in line for line in log_lines)
    more = json.loads(Path(file).read_text())
    more['images'].append(dict(more['images'][0], id=77, file_name='z.jpg'))
    Path(file).write_text(json.dumps(more))
    evaluate(file)
    assert any('only 3 of the 4 images in' in line for line in log_lines)


def test_settings_that_pycocotools_cannot_use(tmp_path):
    file = write(tmp_path)
    assert evaluate(file, iou_thrs=[0.5])['coco/bbox_mAP_50'] == 1
    with pytest.raises(UserError, match=r'the best 100 boxes\. Add 100'):
        evaluate(file, proposal_nums=(1, 10, 300))


def test_without_mmdets_registry(tmp_path):
    """The toolboxes' own tools find the classes by our package alone."""
    settings = dict(SETTINGS, ann_file=write(tmp_path), metainfo=dict(classes=CLASSES))
    data = ROOT.module_dict[settings.pop('type')](**settings)
    assert type(data).__name__ == 'CheckedCocoDataset' and len(data) == 3


def test_a_file_is_read_once_inside_and_let_go_of(tmp_path):
    file = Path(write(tmp_path))
    with annotations_kept():
        assert not gc.isenabled()
        with annotations_kept():  # the outer one lets go
            first = read_coco(file)
        assert read_coco(file) is first
    assert gc.isenabled() and read_coco(file) is not first
    file.write_text('[' * 100_000)
    with pytest.raises(UserError, match=r'a\.json .*JSON'), annotations_kept():
        read_coco(file)
    assert gc.isenabled()


@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 1.0])
def test_compressed_counts_are_read_as_pycocotools_writes_them(share):
    mask = np.random.RandomState(0).rand(300, 200) < share
    text = mask_tools.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()
    flat = np.concatenate([[False], mask.ravel(order='F'), [True]])
    flat[-1] = not flat[-2]
    assert decode_runs(text) == np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1])]).tolist()
    assert mask_trouble(dict(size=[300, 200], counts=text), (200, 300), True) is None
    assert not decode_runs(text + 'P')  # 'P' says that more follows


def test_a_mask_in_several_parts():
    polygon = [1, 1, 9, 1, 9, 9, 1, 9]
    assert mask_trouble([polygon, [3.5, 4, 5, 6, 7, 8]], (20, 20), True) is None
    assert 'no polygon of at least' in mask_trouble([polygon, [1, 2]], (20, 20), True)


def test_objects_are_counted_of_the_images_that_are_left(tmp_path):
    file = write(tmp_path)
    data = build(file)
    expected = sum(len(data.get_data_info(i)['instances']) for i in range(len(data)))
    assert data.num_objects == expected > 0
    assert build(file, indices=1).num_objects is None
    assert count_objects(SimpleNamespace(datasets=[data, data])) == 2 * expected
    assert count_objects(DATASETS.build(dict(type='RepeatDataset', dataset=data, times=2))) is None
