"""The generator of demo data: scenes, four layouts, the folder's rules, the tool."""

import runpy

import cv2
import numpy as np
import pytest
from paths import ROOT

from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.datasets.shapes import CLASSES, label_map, make_scene, write_coco, write_shapes
from cyclemlp_mm.errors import UserError

SMALL = dict(num_train=5, num_val=3, size=(64, 48), seed=5)


def contents(folder):
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (320, 200), (41, 300)])
def test_scenes_of_any_size(size):
    for index in range(20):
        image, masks, labels = make_scene(index, size)
        assert image.shape == (*size[::-1], 3) and image.dtype == np.uint8
        assert 1 <= len(labels) <= 6 and masks.shape == (len(labels), *size[::-1])
        assert masks.sum(0).max() == 1, 'visible parts overlap'
        assert masks.sum((1, 2)).min() >= 16


def test_scenes_differ_and_their_classes_are_balanced():
    scenes = [make_scene(0), make_scene(1), make_scene(0, seed=1), make_scene(0, split='val')]
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    np.testing.assert_array_equal(make_scene(0).image, scenes[0].image)
    labels = np.concatenate([make_scene(index, (64, 64)).labels for index in range(120)])
    shares = np.bincount(labels, minlength=4) / labels.size
    assert shares.min() > 0.18 and shares.max() < 0.32, shares


def test_coco_is_read_by_pycocotools(tmp_path):
    coco = pytest.importorskip('pycocotools.coco').COCO
    write_coco(tmp_path, **SMALL | dict(num_train=40))
    data = coco(str(tmp_path / 'annotations/instances_train2017.json'))
    assert [category['name'] for category in data.loadCats(data.getCatIds())] == list(CLASSES)
    assert data.getImgIds() == list(range(1, 41))
    for index, image in enumerate(data.loadImgs(data.getImgIds())):
        scene = make_scene(index, SMALL['size'], SMALL['seed'])
        stored = cv2.imread(str(tmp_path / 'train2017' / image['file_name']))[..., ::-1]
        assert np.abs(stored - scene.image.astype(int)).mean() < 10  # JPEG halves the colours
        annotations = data.loadAnns(data.getAnnIds(imgIds=image['id']))
        assert [a['category_id'] - 1 for a in annotations] == list(scene.labels)
        for annotation, mask in zip(annotations, scene.masks):
            np.testing.assert_array_equal(data.annToMask(annotation), mask)
            assert annotation['area'] == mask.sum()
            (x, y, width, height), (rows, columns) = annotation['bbox'], np.nonzero(mask)
            assert (x, x + width) == (columns.min(), columns.max() + 1)
            assert (y, y + height) == (rows.min(), rows.max() + 1)


def test_all_layouts_hold_the_same(tmp_path, capsys):
    """As the tool writes them."""
    tool = runpy.run_path(str(ROOT / 'tools/make_demo_data.py'))['main']
    options = ['--num-train', '5', '--num-val', '3', '--size', '64', '48', '--seed', '5']
    for layout in ('coco', 'ade20k', 'folders', 'lists'):
        tool([layout, str(tmp_path / layout), *options])
        assert '5 training and 3 validation images' in capsys.readouterr().out
    names = (tmp_path / 'ade20k/classes.txt').read_text().split()
    assert names == ['background', *(tmp_path / 'lists/classes.txt').read_text().split()]
    for split, part in (('train', 'training'), ('val', 'validation')):
        lines = (tmp_path / f'lists/{split}_list.txt').read_text().splitlines()
        assert len(lines) == SMALL[f'num_{split}']
        for number, line in enumerate(lines, start=1):
            name, twin = f'{part}/ADE_{split}_{number:08d}', f'coco/{split}2017/{number:012d}.jpg'
            image = (tmp_path / f'ade20k/images/{name}.jpg').read_bytes()
            assert image == (tmp_path / twin).read_bytes()
            stored = cv2.imread(str(tmp_path / f'ade20k/annotations/{name}.png'), -1)
            scene = make_scene(number - 1, SMALL['size'], SMALL['seed'], split)
            np.testing.assert_array_equal(stored, label_map(scene))
            assert set(stored[~scene.masks.any(0)]) <= {0, 1}
            top = scene.masks[-1]  # whole, with an ignored band around it
            assert set(stored[top]) == {scene.labels[-1] + 2}
            assert (stored[:, 1:][top[:, :-1] & ~top[:, 1:]] == 0).all()
            name, label = line.split()
            alone = make_scene(number - 1, SMALL['size'], SMALL['seed'], split, max_objects=1)
            assert [int(label)] == list(alone.labels)
            image = (tmp_path / 'folders' / split / CLASSES[int(label)] / name).read_bytes()
            assert image == (tmp_path / 'lists' / split / name).read_bytes()


def test_whole_data_are_kept_and_interrupted_ones_written_again(tmp_path, monkeypatch):
    whole = contents(write_shapes('lists', str(tmp_path / 'new/whole'), **SMALL))
    with monkeypatch.context() as patch:
        patch.delattr(shapes, 'make_scene')
        write_shapes('lists', tmp_path / 'new/whole', **SMALL)
        with pytest.raises(NameError):
            write_shapes('lists', tmp_path / 'broken', **SMALL)
    assert contents(write_shapes('lists', tmp_path / 'broken', **SMALL)) == whole


def test_folders_of_something_else_are_not_touched(tmp_path):
    before = contents(write_coco(tmp_path / 'data', **SMALL))
    for layout, change in (('coco', dict(num_train=3)), ('lists', {})):
        with pytest.raises(UserError, match='data holds something else'):
            write_shapes(layout, tmp_path / 'data', **SMALL | change)
    assert contents(tmp_path / 'data') == before
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/mine.txt').write_text('x')
    (tmp_path / 'mine' / shapes.MANIFEST).write_text('{')  # half written
    with pytest.raises(UserError, match='mine holds something else'):
        write_coco(tmp_path / 'mine', **SMALL)
    with pytest.raises(FileExistsError):
        write_coco(tmp_path / 'mine/mine.txt', **SMALL)
    assert contents(tmp_path / 'mine')['mine.txt'] == b'x'
    assert len(contents(tmp_path / 'mine')) == 2


@pytest.mark.parametrize('arguments', [dict(num_train=0), dict(size=(128, 16)), dict(seed=-1)])
def test_arguments_outside_their_range(arguments, tmp_path):
    with pytest.raises(UserError, match=f'{next(iter(arguments))} '):
        write_coco(tmp_path / 'data', **arguments)
    assert not (tmp_path / 'data').exists()
