"""What the check says about annotation files: errors, and what trains otherwise than expected."""

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
                segmentation=[[10, 40, 40, 40, 40, 60, 10, 60]],
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
    if not isinstance(made, bytes):
        listed = [image.get('file_name') for image in made['images'] or [] if image]
        for name in names or [name for name in listed if isinstance(name, str)]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        made = json.dumps(made).encode()
    (folder / 'a.json').write_bytes(made)
    head = dict(mask_head={}) if more.pop('masks', False) else {}
    dataset = dict(type=kind, data_root=str(folder), ann_file='a.json', **more)
    test_cfg = dict(rpn=dict(max_per_img=5), rcnn=dict(max_per_img=90))
    cfg = Config(
        dict(
            model=dict(bbox_head={}, test_cfg=test_cfg, **head),
            **{f'{split}_dataloader': dict(dataset=dict(dataset, pipeline=[]))},
            val_evaluator=dict(ann_file='a.json', metric='segm' if head else 'bbox'),
        )
    )
    report = Report()
    dataset = cfg[f'{split}_dataloader'].dataset
    check_coco(report, cfg, split, dataset, classes, folder / 'a.json')
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


def image(**values):
    return change('images', 1, **values)


def put(**values):
    return lambda made: made.update(values)


def listed_twice(made):
    made['images'].append(dict(made['images'][0], id=77, file_name='./0.jpg'))


def mixed_ids(made):
    made['images'][0].update(id='zero')
    change('annotations', 3, image_id='zero')(made)


def objects_twice(made):
    made['annotations'].extend(dict(a, id=900) for a in made['annotations'][:3])


def fractions(a):
    return [[v / 100 for v in polygon] for polygon in a['segmentation']]


def nothing(made):
    pass


NAN = float('nan')
FILTER = dict(filter_cfg=dict(filter_empty_gt=True, min_size=81))
EMPTY = dict(filter_cfg=dict(filter_empty_gt=True))
NO_ORDER = dict(classes=CLASSES[::-1], kind='CocoDataset')
ANIMAL = dict(id=9, name='animal')
#: name: (what is done to good content, the finding or None for none, arguments of `findings`).
CASES = {
    'nothing': (nothing, None),
    'annotation ids of texts': (ann(id=lambda a: f'x{a["id"]}'), None),
    # Files and lists.
    'categories of nothing': (put(categories=[]), 'error: .*has no categories'),
    'category without a name': (change('categories', 1, drop='name'), '"id" and a "name"'),
    'a category of a number': (change('categories', 1, name=3), 'a "name" .a text'),
    'double categories': (change('categories', name='cat'), 'are double'),
    'annotations of null': (put(annotations=None), 'its "annotations" is not a list, but None'),
    'no annotations': (put(annotations=[]), 'error: .*it has no boxes'),
    # Images.
    'ids of mixed types': (mixed_ids, 'error: .*ids of its images mix numbers and texts'),
    'an image id of a list': (image(id=[1]), 'error: .*1 image lack "id"'),
    'an image name of a number': (image(file_name=5), '1 image lack "file_name".*Write'),
    'images of LVIS': (image(drop='file_name'), '"file_name" .a text; LVIS.* coco_url'),
    'images without a size': (change('images', drop='width'), '4 images have no "width"'),
    'double image ids': (change('images', id=1), '1 image id are used twice: 1'),
    'listed twice': (listed_twice, 'warning: .*1 image file are listed more than once'),
    'small images': (nothing, r'error: .*4 of 4 images .*min_size=81', FILTER),
    'small one': (change('images', 3, height=90), r'warning: .*1 of 4 .*min_size=81', FILTER),
    'without objects': (
        lambda made: made['annotations'].__delitem__(slice(6, None)),
        r'warning: .*2 of 4 images have no object .*filter_empty_gt=False',
        EMPTY,
    ),
    # Boxes.
    'no objects': (
        lambda made: made['annotations'].append('x'),
        r'malformed \(no object\), ids 12',
    ),
    'three numbers': (one(bbox=[1, 2, 3]), 'error: .*1 of 12 boxes are malformed: "bbox" is'),
    'a box of nan': (one(bbox=[1, 2, NAN, 3]), 'not four finite numbers'),
    'a box of text': (one(bbox=['1', '2', '3', '4']), 'not four finite numbers'),
    'an area of null': (one(area=None), '"area" is no finite number'),
    'areas of nan': (ann(area=NAN), '12 of 12 boxes .*"area" is no finite number'),
    'without an image': (one(drop='image_id'), 'they lack image_id'),
    'an id of a list': (one(id=[1]), 'error: .* id is not a number'),
    'a category id of a list': (one(category_id=[1]), 'category_id is not a number'),
    'a crowd of text': (one(iscrowd='0'), '"iscrowd" is neither 0 nor 1'),
    'ids as numbers and texts': (
        ann(image_id=lambda a: str(a['image_id'])),
        'belong to no image .*image_id is a number in one place and a text in the other',
    ),
    'category ids of texts': (
        ann(category_id=lambda a: str(a['category_id'])),
        'category_id is a number in one place and a text.*none of its 12 boxes',
    ),
    'no area': (change('annotations', 2, bbox=[1, 1, 0, 5]), '2 of 12 .*no area.*, ids 0, 1'),
    'no area at all': (ann(bbox=[1, 1, 0, 0]), 'error: .*none of its 12 boxes can be learned'),
    'outside': (one(bbox=[900, 1, 5, 5]), 'warning: .*1 of 12 boxes lie outside their image'),
    'reaching out': (one(bbox=[1, 1, 500, 5]), 'warning: .*reach beyond the image'),
    'an unknown category': (one(category_id=99), 'warning: .*have an unknown category id'),
    'an unknown image': (one(image_id=99), 'warning: .*belong to no image of the file'),
    'thin': (one(bbox=[1, 1, 20, 0.5]), '1 of 12 boxes are thinner than 1 pixel'),
    'areas of 1': (ann(area=1.0), 'warning: .*"area" of 12 of 12 boxes'),
    'areas of the image': (ann(area=8000), '"area" of 12 of 12 boxes'),
    'areas from 0 to 1': (ann(area=0.025), '"area" of 12 of 12 boxes'),
    'plausible areas, all the same': (
        ann(area=150, bbox=lambda a: [1, 1, 20, 10 + a['id'] % 2]),
        '"area" of 12 of 12 boxes',
    ),
    'corners': (
        ann(bbox=lambda a: [70, a['bbox'][1], 90, a['bbox'][1] + 10]),
        'reach beyond .*All of them fit as .x1, y1, x2, y2.',
    ),
    'centres': (
        ann(bbox=[90, 70, 20, 20], area=400),
        'reach beyond .*All of them fit as .x, y of the centre, width, height.',
    ),
    'parts of the image': (
        ann(bbox=[0.1, 0.2, 0.3, 0.25], area=0.07),
        'error: .*numbers from 0 to 1',
    ),
    'crowds': (ann(iscrowd=lambda a: a['id'] % 2), 'warning: .*6 of 12 boxes have "iscrowd" of 1'),
    'ignored': (ann(ignore=lambda a: a['id'] % 2), 'warning: .*6 of 12 boxes have "ignore" of 1'),
    'crowds only': (ann(iscrowd=1), 'error: .*none of its 12 boxes can be learned'),
    'objects twice': (objects_twice, 'warning: .*3 objects are listed more than once'),
    'many objects': (
        lambda made: made.update(content(2, 120)),
        r'warning: .*2 images have more than 90 objects, up to 120.*at best 75%',
    ),
    # Classes.
    'a class without a box': (
        lambda made: made['categories'].append(ANIMAL),
        'warning: .*no box of 1 class: animal',
        dict(classes=['dog', 'animal', 'cat']),
    ),
    'a class that is not there': (nothing, 'error: .*not in the file: eel', dict(classes=['eel'])),
    'classes left out': (
        nothing,
        r'warning: .*not trained.*dog \(4 boxes\)',
        dict(classes=['cat']),
    ),
    'another order by order': (nothing, 'in the order of the file .*be exchanged', NO_ORDER),
    'another order by name': (nothing, None, dict(classes=CLASSES[::-1])),
}
MASKS, VAL = dict(masks=True), dict(masks=True, split='val')


def mask(value):
    return one(segmentation=value)


CASES |= {
    f'masks, {name}': (*case[:2], case[2] if len(case) > 2 else MASKS)
    for name, case in {
        'good': (nothing, None),
        'of nobody': (ann(drop='segmentation'), 'error: .*a mask head needs masks'),
        'one missing': (mask([]), 'error: .*1 annotation have no "segmentation"'),
        'flat': (mask([1, 1, 20, 1, 20, 20]), 'error: .*list of polygons .* ids 0'),
        'flat, evaluated': (mask([1, 1, 20, 1, 20, 20]), 'list of polygons', VAL),
        'two points': (mask([[1, 2, 3, 4]]), 'warning: .*1 annotation have no polygon of at least'),
        'two points, evaluated': (mask([[1, 2, 3, 4]]), 'pycocotools cannot read', VAL),
        'text': (mask('abc'), 'list of polygons'),
        'nan': (mask([[NAN] * 6]), 'something else than finite numbers'),
        'from 0 to 1': (ann(segmentation=fractions), 'error: .*cover less than a quarter.*pixels'),
        'elsewhere': (mask([[60, 4, 63, 4, 63, 7]]), 'warning: .*1 annotation .*quarter .*, ids 0'),
        'RLE of another size': (mask(dict(size=[100, 80], counts=[0, 9])), r'"size" is not \[hei'),
        'RLE without a size': (mask(dict(counts=[0, 9])), 'an RLE without "size" and "counts"'),
        'RLE of nonsense': (mask(dict(size=[80, 100], counts='\x00zz')), '"counts" cannot be deco'),
        'RLE too long': (
            mask(dict(size=[80, 100], counts=[0, 9999])),
            'more pixels than their ima',
        ),
        'RLE too short': (mask(dict(size=[80, 100], counts=[0, 9])), 'end before the last pixel'),
    }.items()
}


@pytest.mark.parametrize('case', CASES)
def test_boxes(case, tmp_path):
    step, expected, settings = (*CASES[case], {})[:3]
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
