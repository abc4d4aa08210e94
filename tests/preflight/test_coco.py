"""What the check says about annotations that train and evaluate, but otherwise than expected."""

import json
import re
import unicodedata
from urllib.parse import quote

import pytest
from mmengine.config import Config

from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.coco import check_coco
from cyclemlp_mm.preflight.images import check_shared_images

CLASSES = ['cat', 'dog']


def content(images=4, objects=3):
    """Images of 100 x 80 pixels, with boxes of 20 x 10."""
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=100, height=80) for i in range(images)],
        annotations=[
            dict(
                id=i * objects + j,
                image_id=i,
                category_id=j % 2,
                iscrowd=0,
                area=200 - j % 50,
                bbox=[10 + j % 50, 40 + i, 20, 10],
            )
            for i in range(images)
            for j in range(objects)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)],
    )


def findings(
    folder, made, split='train', kind='CheckedCocoDataset', classes=CLASSES, names=None, **more
):
    """Findings as texts; the folder has the images of ``names``, by default the right ones."""
    (folder / 'a.json').write_text(json.dumps(made))
    for name in names or [image['file_name'] for image in made['images']]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    dataset = dict(type=kind, data_root=str(folder), ann_file='a.json', **more)
    cfg = Config(
        dict(
            model=dict(
                bbox_head={}, test_cfg=dict(rpn=dict(max_per_img=5), rcnn=dict(max_per_img=90))
            ),
            **{f'{split}_dataloader': dict(dataset=dict(dataset, pipeline=[]))},
            val_evaluator=dict(ann_file='a.json'),
        )
    )
    report = Report()
    dataset = cfg[f'{split}_dataloader'].dataset
    check_coco(report, cfg, split, dataset, classes, folder / 'a.json')
    return [str(finding) for finding in report.findings]


def change(key, **values):
    def step(made):
        for entry in made[key]:
            entry.update({k: v(entry) if callable(v) else v for k, v in values.items()})

    return step


def listed_twice(made):
    made['images'].append(dict(made['images'][0], id=77, file_name='./0.jpg'))


FILTER = dict(filter_cfg=dict(filter_empty_gt=True, min_size=81))
CASES = {
    'nothing': (lambda made: None, {}, None),
    'annotation ids of texts': (change('annotations', id=lambda a: f'x{a["id"]}'), {}, None),
    'ids of mixed types': (
        lambda made: (
            made['images'][0].update(id='zero'),
            [a.update(image_id='zero') for a in made['annotations'][:3]],
        ),
        {},
        'error: .*ids of its images mix numbers and texts',
    ),
    'ids as numbers and as texts': (
        change('annotations', image_id=lambda a: str(a['image_id'])),
        {},
        'belong to no image .*Their image_id is a number in one place and a text in the other',
    ),
    'areas of 1': (change('annotations', area=1.0), {}, 'warning: .*"area" of 12 of 12 boxes'),
    'areas of the image': (change('annotations', area=8000), {}, '"area" of 12 of 12 boxes'),
    'areas from 0 to 1': (change('annotations', area=0.025), {}, '"area" of 12 of 12 boxes'),
    'areas that are plausible, all the same': (
        lambda made: [
            a.update(area=150, bbox=[1, 1, 20, 10 + a['id'] % 2]) for a in made['annotations']
        ],
        {},
        '"area" of 12 of 12 boxes',
    ),
    'corners': (
        change('annotations', bbox=lambda a: [70, a['bbox'][1], 90, a['bbox'][1] + 10]),
        {},
        'reach beyond .*All of them fit as .x1, y1, x2, y2.',
    ),
    'centres': (
        change('annotations', bbox=[90, 70, 20, 20], area=400),
        {},
        'reach beyond .*All of them fit as .x, y of the centre, width, height.',
    ),
    'parts of the image': (
        change('annotations', bbox=[0.1, 0.2, 0.3, 0.25], area=0.07),
        {},
        'error: .*numbers from 0 to 1',
    ),
    'crowds': (
        change('annotations', iscrowd=lambda a: a['id'] % 2),
        {},
        'warning: .*6 of 12 boxes have "iscrowd" of 1: they are neither learned nor',
    ),
    'ignored': (
        change('annotations', ignore=lambda a: a['id'] % 2),
        {},
        'warning: .*6 of 12 boxes have "ignore" of 1: they are neither learned nor',
    ),
    'thin boxes': (
        change('annotations', bbox=lambda a: [1, 1, 20, 10 if a['id'] else 0.5]),
        {},
        '1 of 12 boxes are thinner than 1 pixel',
    ),
    'listed twice': (listed_twice, {}, 'warning: .*1 image file are listed more than once'),
    'small images': (lambda made: None, FILTER, r'error: .*4 of 4 images .*min_size=81'),
    'one small image': (
        lambda made: [image.update(height=90) for image in made['images'][1:]],
        FILTER,
        r'warning: .*1 of 4 images .*min_size=81',
    ),
    'no objects': (
        lambda made: made['annotations'].__delitem__(slice(6, None)),
        dict(filter_cfg=dict(filter_empty_gt=True)),
        r'warning: .*2 of 4 images have no object .*filter_empty_gt=False',
    ),
    'many objects': (
        lambda made: made.update(content(2, 120)),
        {},
        r'warning: .*2 images have more than 90 objects, up to 120.*at best 75%',
    ),
    'a class without a box': (
        lambda made: made['categories'].append(dict(id=9, name='animal')),
        dict(classes=['dog', 'animal', 'cat']),
        'warning: .*no box of 1 class: animal',
    ),
    'another order in a data set by order': (
        lambda made: None,
        dict(classes=CLASSES[::-1], kind='CocoDataset'),
        'CocoDataset gives labels in the order of the file .*names would be exchanged',
    ),
    'another order in a data set by name': (lambda made: None, dict(classes=CLASSES[::-1]), None),
}


@pytest.mark.parametrize('case', CASES)
def test_boxes(case, tmp_path):
    step, settings, expected = CASES[case]
    made = content()
    step(made)
    found = findings(tmp_path, made, **settings)
    if expected is None:
        assert found == []
    else:
        assert any(re.search(expected, one) for one in found), found


@pytest.mark.parametrize(
    'listed, file, cause',
    [
        ('a\\1.jpg', 'a/1.jpg', 'backslashes'),
        ('my%20image.jpg', 'my image.jpg', 'URL encoding'),
        (quote('Zelle_ä.jpg'), 'Zelle_ä.jpg', 'URL encoding'),
        (unicodedata.normalize('NFC', 'ä.jpg'), unicodedata.normalize('NFD', 'ä.jpg'), '(NFC)'),
        (unicodedata.normalize('NFD', 'ä.jpg'), unicodedata.normalize('NFC', 'ä.jpg'), '(NFD)'),
        ('1.jpg', '1.JPG', 'capital letters'),
        ('/home/me/1.jpg', '1.jpg', 'in another folder'),
        ('C:\\me\\1.jpg', '1.jpg', 'in another folder'),
        ('1.jpg', 'camera/1.jpg', 'in another folder'),
    ],
)
def test_names_that_are_spelt_otherwise(listed, file, cause, tmp_path):
    made = content(1)
    made['images'][0]['file_name'] = listed
    [said] = findings(tmp_path, made, names=[file])
    assert said.startswith('error: ') and cause in said
    assert ascii(listed) in said and ascii(file) in said


def test_images_that_are_trained_and_evaluated(tmp_path):
    for name, size in (('a', 5000), ('b', 5000), ('c', 9)):
        (tmp_path / name).write_bytes(name.encode() * size)
    (tmp_path / 'copy of a').write_bytes(b'a' * 5000)
    report = Report()
    paths = [str(tmp_path / name) for name in ('a', 'b', 'c', 'copy of a')]
    check_shared_images(report, paths[:1], paths[1:])
    [said] = map(str, report.findings)
    assert '1 image of validation' in said and 'copy of a' in said
    check_shared_images(report, paths[:1], paths[1:3])
    assert len(report.findings) == 1
