"""What the check says about annotation files: errors, and what trains otherwise than expected."""

import json
import re
import unicodedata
from urllib.parse import quote

import pytest
from mmengine.config import Config

from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.coco import check_coco
from cyclemlp_mm.preflight.files import check_shared_images

CLASSES = ['cat', 'dog']


def content(images=4, objects=3):
    """Images of 100 x 80 pixels, with boxes of 20 x 10."""
    polygons = [[10, 40, 40, 40, 40, 60, 10, 60]]
    annotations = [
        dict(id=i * objects + j, image_id=i, category_id=j % 2, iscrowd=0, area=200 - j % 50)
        | dict(bbox=[10 + j % 50, 40 + i, 20, 10], segmentation=polygons)
        for i in range(images)
        for j in range(objects)
    ]
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=100, height=80) for i in range(images)],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)],
    )


def findings(folder, made, split='train', classes=CLASSES, names=None, masks=False, **settings):
    """Findings as texts; the folder has the images of ``names``, by default the right ones."""
    if not isinstance(made, bytes):
        listed = [image.get('file_name') for image in made['images']]
        for name in names or [name for name in listed if isinstance(name, str)]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        made = json.dumps(made).encode()
    (folder / 'a.json').write_bytes(made)
    dataset = dict(type='CheckedCocoDataset', data_root=str(folder), ann_file='a.json', pipeline=[])
    test_cfg = dict(rpn=dict(max_per_img=5), rcnn=dict(max_per_img=90))
    cfg = dict(
        model=dict(bbox_head={}, test_cfg=test_cfg, **dict(mask_head={}) if masks else {}),
        val_evaluator=dict(ann_file='a.json', metric='segm' if masks else 'bbox'),
    )
    cfg = Config({f'{split}_dataloader': dict(dataset=dict(dataset, **settings)), **cfg})
    report = Report()
    dataset = cfg[f'{split}_dataloader'].dataset
    check_coco(report, cfg, split, dataset, classes)
    return [str(finding) for finding in report.findings]


def change(key, number=None, drop=None, **values):
    """A step that changes entries of a list, all or the first few."""

    def step(made):
        for entry in made[key][:number]:
            entry.update({k: v(entry) if callable(v) else v for k, v in values.items()})
            entry.pop(drop, None)

    return step


def ann(**values):
    return change('annotations', **values)


def one(**values):
    return change('annotations', 1, **values)


def mask(value):
    return one(segmentation=value)


def image(**values):
    return change('images', 1, **values)


def put(**values):
    return lambda made: made.update(values)


def add(key, *entries):
    return lambda made: made[key].extend(entries)


def mixed_ids(made):
    made['images'][0].update(id='zero')
    change('annotations', 3, image_id='zero')(made)


def text(key):
    return lambda a: str(a[key])


def fractions(a):
    return [[v / 100 for v in polygon] for polygon in a['segmentation']]


def nothing(made):
    pass


GOOD, NAN = content(), float('nan')
TWICE = dict(GOOD['images'][0], id=77, file_name='./0.jpg')
FILTER = dict(filter_cfg=dict(filter_empty_gt=True, min_size=81))
EMPTY = dict(filter_cfg=dict(filter_empty_gt=True))
MASKS, VAL = dict(masks=True), dict(masks=True, split='val')
EXCHANGED = dict(classes=CLASSES[::-1])
#: What is done to good content, the finding or None for none, arguments of `findings`.
CASES = [
    (nothing, None),
    (ann(id=lambda a: f'x{a["id"]}'), None),
    # Files and lists.
    (put(categories=[]), 'error: .*has no categories'),
    (change('categories', 1, drop='name'), '"id" and a "name"'),
    (change('categories', 1, name=3), 'a "name" .a text'),
    (change('categories', name='cat'), 'are double'),
    (put(annotations=None), 'its "annotations" is not a list, but None'),
    (put(annotations=[]), 'error: .*it has no boxes'),
    # Images.
    (mixed_ids, 'error: .*ids of its images mix numbers and texts'),
    (image(id=[1]), 'error: .*1 image lack "id"'),
    (image(file_name=5), '1 image lack .*"file_name".*Write'),
    (image(drop='file_name'), '"file_name" .a text; LVIS.* coco_url'),
    (change('images', drop='width'), '4 images lack .*"width"'),
    (change('images', id=1), '1 image id are used twice: 1'),
    (add('images', TWICE), 'warning: .*1 image file are listed more than once'),
    (nothing, r'error: .*4 of 4 images .*below 81 .*min_size=1', FILTER),
    (change('images', 3, height=90), r'warning: .*1 of 4 .*min_size=1', FILTER),
    (
        lambda made: made['annotations'].__delitem__(slice(6, None)),
        r'warning: .*2 of 4 images have no object .*filter_empty_gt=False',
        EMPTY,
    ),
    # Boxes.
    (add('annotations', 'x'), r'malformed \(no object\), ids 12'),
    (one(bbox=[1, 2, 3]), 'error: .*1 of 12 boxes are malformed: "bbox" is'),
    (one(bbox=[1, 2, NAN, 3]), 'not four finite numbers'),
    (one(bbox=['1', '2', '3', '4']), 'not four finite numbers'),
    (one(area=None), '"area" is not a finite number'),
    (ann(area=NAN), '12 of 12 boxes .*"area" is not a finite number'),
    (one(drop='image_id'), '"image_id" is not a number or'),
    (one(id=[1]), 'error: .*"id" is not a number'),
    (one(category_id=[1]), '"category_id" is not a number'),
    (one(iscrowd='0'), '"iscrowd" is not 0 or 1'),
    (ann(image_id=text('image_id')), 'belong to no image .*image_id is a number in one place and'),
    (ann(category_id=text('category_id')), 'category_id is a number in .*none of its 12 boxes'),
    (change('annotations', 2, bbox=[1, 1, 0, 5]), '2 of 12 .*no area.*, ids 0, 1'),
    (ann(bbox=[1, 1, 0, 0]), 'error: .*none of its 12 boxes can be learned'),
    (one(bbox=[900, 1, 5, 5]), 'warning: .*1 of 12 boxes lie outside their image'),
    (one(bbox=[1, 1, 500, 5]), 'warning: .*reach beyond the image'),
    (one(category_id=99), 'warning: .*have an unknown category id'),
    (one(image_id=99), 'warning: .*belong to no image of the file'),
    (one(bbox=[1, 1, 20, 0.5]), '1 of 12 boxes are thinner than 1 pixel'),
    (ann(area=1.0), 'warning: .*"area" of 12 of 12 boxes'),
    (ann(area=8000), '"area" of 12 of 12 boxes'),
    (ann(area=0.025), '"area" of 12 of 12 boxes'),
    # Plausible areas, but all the same.
    (ann(area=150, bbox=lambda a: [1, 1, 20, 10 + a['id'] % 2]), '"area" of 12 of 12 boxes'),
    (ann(bbox=lambda a: [70, a['bbox'][1], 90, a['bbox'][1] + 10]), 'All .* as .x1, y1, x2, y2.'),
    (ann(bbox=[90, 70, 20, 20], area=400), 'All of them fit as .centre x, y, width, height.'),
    (ann(bbox=[0.1, 0.2, 0.3, 0.25], area=0.07), 'error: .*numbers from 0 to 1'),
    (ann(iscrowd=lambda a: a['id'] % 2), 'warning: .*6 of 12 boxes have "iscrowd" of 1'),
    (ann(ignore=lambda a: a['id'] % 2), 'warning: .*6 of 12 boxes have "ignore" of 1'),
    (ann(iscrowd=1), 'error: .*none of its 12 boxes can be learned'),
    (
        add('annotations', *[dict(a, id=900) for a in GOOD['annotations'][:3]]),
        'warning: .*3 objects are listed more than once',
    ),
    (
        lambda made: made.update(content(2, 120)),
        r'warning: .*2 images have more than 90 objects, up to 120.*at best 75%',
    ),
    # Classes.
    (
        add('categories', dict(id=9, name='animal')),
        'warning: .*no box of 1 class: animal',
        dict(classes=['dog', 'animal', 'cat']),
    ),
    (nothing, 'error: .*not in the file: eel', dict(classes=['eel'])),
    (nothing, r'warning: .*not trained.*dog \(4 boxes\)', dict(classes=['cat'])),
    (nothing, 'in the order of the file .*be exchanged', dict(EXCHANGED, type='CocoDataset')),
    (nothing, None, EXCHANGED),
    # Masks.
    (nothing, None, MASKS),
    (ann(drop='segmentation'), 'error: .*a mask head needs masks', MASKS),
    (mask([]), 'error: .*1 annotation have no "segmentation"', MASKS),
    (mask([1, 1, 20, 1, 20, 20]), 'error: .*list of polygons .* ids 0', MASKS),
    (mask([1, 1, 20, 1, 20, 20]), 'list of polygons', VAL),
    (mask([[1, 2, 3, 4]]), 'warning: .*1 annotation have no polygon of at least', MASKS),
    (mask([[1, 2, 3, 4]]), 'pycocotools cannot read', VAL),
    (mask('abc'), 'list of polygons', MASKS),
    (mask([[NAN] * 6]), 'something else than finite numbers', MASKS),
    (ann(segmentation=fractions), 'error: .*cover less than a quarter.*pixels', MASKS),
    (mask([[60, 4, 63, 4, 63, 7]]), 'warning: .*1 annotation .*quarter .*, ids 0', MASKS),
    (mask(dict(size=[100, 80], counts=[0, 9])), r'"size" is not \[hei', MASKS),
    (mask(dict(counts=[0, 9])), r'"size" is not \[hei', MASKS),
    (mask(dict(size=[80, 100], counts='\x00zz')), '"counts" cannot be deco', MASKS),
    (mask(dict(size=[80, 100], counts=[0, 9999])), 'end .*, or after it', MASKS),
    (mask(dict(size=[80, 100], counts=[0, 9])), 'end before the last pixel', MASKS),
]


@pytest.mark.parametrize('case', CASES, ids=[str(case[1]) for case in CASES])
def test_boxes(case, tmp_path):
    step, expected, settings = (*case, {})[:3]
    made = content()
    step(made)
    found = findings(tmp_path, made, **settings)
    if expected is None:
        assert found == []
    else:
        assert re.search(expected, '\n'.join(found), re.DOTALL), found


@pytest.mark.parametrize(
    'text, expected',
    [
        (b'no json', 'is no JSON'),
        (json.dumps(content()).encode()[:-100], 'is no JSON'),
        (b'[1, 2]', 'is no COCO annotation file: it lacks'),
        (b'{"images": null, "categories": []}', 'its "images" is not a list, but None'),
        ('{"a": "kä"}'.encode('cp1252'), 'is not in UTF-8: save it as UTF-8'),
    ],
)
def test_files_of_something_else(text, expected, tmp_path):
    [found] = findings(tmp_path, text)
    assert found.startswith(f'error: {tmp_path / "a.json"}: ') and expected in found


NFC, NFD = (unicodedata.normalize(form, 'ä.jpg') for form in ('NFC', 'NFD'))


@pytest.mark.parametrize(
    'listed, file, cause',
    [
        ('a\\1.jpg', 'a/1.jpg', 'backslashes'),
        ('my%20image.jpg', 'my image.jpg', 'URL encoding'),
        (quote('Zelle_ä.jpg'), 'Zelle_ä.jpg', 'URL encoding'),
        (NFC, NFD, '(NFC)'),
        (NFD, NFC, '(NFD)'),
        ('1.jpg', '1.JPG', 'capital letters'),
        ('/home/me/1.jpg', '1.jpg', 'in another folder'),
        ('C:\\me\\1.jpg', '1.jpg', 'in another folder'),
        ('1.jpg', 'camera/1.jpg', 'in another folder'),
    ],
)
def test_names_that_are_spelt_otherwise(listed, file, cause, tmp_path):
    made = content(1)
    made['images'][0]['file_name'] = listed
    [found] = findings(tmp_path, made, names=[file])
    assert found.startswith('error: ') and cause in found
    assert ascii(listed) in found and ascii(file) in found


def test_images_that_are_trained_and_evaluated(tmp_path):
    for name, size in (('a', 5000), ('b', 5000), ('c', 9)):
        (tmp_path / name).write_bytes(name.encode() * size)
    (tmp_path / 'copy of a').write_bytes(b'a' * 5000)
    report = Report()
    paths = [str(tmp_path / name) for name in ('a', 'b', 'c', 'copy of a')]
    check_shared_images(report, paths[:1], paths[1:])
    [found] = map(str, report.findings)
    assert '1 image of validation' in found and 'copy of a' in found
    check_shared_images(report, paths[:1], paths[1:3])
    assert len(report.findings) == 1
