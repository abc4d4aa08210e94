"""The generator of demo data: scenes, four layouts, the folder's rules, the tool."""

import runpy

import cv2
import numpy as np
import pytest
from paths import ROOT

from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.datasets.shapes import (
    CLASSES,
    SEGMENTATION_CLASSES,
    label_map,
    make_scene,
    write_ade20k,
    write_coco,
    write_image_folders,
    write_image_lists,
)
from cyclemlp_mm.errors import UserError

SMALL = dict(num_train=5, num_val=3, size=(64, 48), seed=5)
WRITERS = [write_coco, write_ade20k, write_image_folders, write_image_lists]


def contents(folder):
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pixels(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (320, 200), (41, 300)])
def test_scenes_of_any_size(size):
    for index in range(20):
        image, masks, labels = make_scene(index, size)
        assert image.shape == (*size[::-1], 3) and image.dtype == np.uint8
        assert 1 <= len(labels) <= 6 and masks.shape == (len(labels), *size[::-1])
        assert masks.sum(0).max() == 1, 'visible parts overlap'
        assert masks.sum((1, 2)).min() >= 16
        assert set(labels) <= set(range(len(CLASSES)))


def test_scenes_differ_and_their_classes_are_balanced():
    scenes = [make_scene(0), make_scene(1), make_scene(0, seed=1), make_scene(0, split='val')]
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    np.testing.assert_array_equal(make_scene(0).image, scenes[0].image)
    labels = np.concatenate([make_scene(index, (64, 64)).labels for index in range(120)])
    shares = np.bincount(labels) / labels.size
    assert shares.min() > 0.18 and shares.max() < 0.32, shares


def test_shapes_stand_out_from_the_background():
    for index in range(30):
        image, masks, _ = make_scene(index, max_objects=1)
        inner = cv2.erode(masks[0].astype(np.uint8), np.ones((5, 5))) > 0
        outer = cv2.dilate(masks[0].astype(np.uint8), np.ones((5, 5))) == 0
        difference = np.abs(np.median(image[inner], 0) - np.median(image[outer], 0)).sum()
        assert difference > 60, (index, difference)


@pytest.mark.parametrize('split, count', [('train', 5), ('val', 3)])
def test_coco_is_read_by_pycocotools(split, count, tmp_path):
    coco = pytest.importorskip('pycocotools.coco').COCO
    write_coco(tmp_path, **SMALL)
    data = coco(str(tmp_path / f'annotations/instances_{split}2017.json'))
    assert [category['name'] for category in data.loadCats(data.getCatIds())] == list(CLASSES)
    assert data.getImgIds() == list(range(1, count + 1))
    for index, image in enumerate(data.loadImgs(data.getImgIds())):
        scene = make_scene(index, SMALL['size'], SMALL['seed'], split)
        stored = pixels(tmp_path / f'{split}2017' / image['file_name'])
        assert stored.shape == (image['height'], image['width'], 3)
        assert np.abs(stored - scene.image).mean() < 10  # JPEG, which halves the colours
        annotations = data.loadAnns(data.getAnnIds(imgIds=image['id']))
        assert [a['category_id'] - 1 for a in annotations] == list(scene.labels)
        for annotation, mask in zip(annotations, scene.masks):
            np.testing.assert_array_equal(data.annToMask(annotation), mask)
            assert annotation['area'] == mask.sum()
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


def test_polygons_give_the_masks_of_crowded_scenes():
    rle = pytest.importorskip('pycocotools.mask')
    in_parts = 0
    for index in range(60):
        for mask in make_scene(index, (96, 80), max_objects=10).masks:
            polygons = shapes.mask_to_polygons(mask)
            in_parts += len(polygons) > 1
            decoded = rle.decode(rle.merge(rle.frPyObjects(polygons, *mask.shape)))
            np.testing.assert_array_equal(decoded, mask)
    assert in_parts > 3


def test_ade20k_holds_the_same_images_with_labels(tmp_path):
    coco = write_coco(tmp_path / 'coco', **SMALL)
    ade20k = write_ade20k(tmp_path / 'ade20k', **SMALL)
    assert (ade20k / 'classes.txt').read_text().split() == list(SEGMENTATION_CLASSES)
    for split, part, count in (('train', 'training', 5), ('val', 'validation', 3)):
        for number in range(1, count + 1):
            name = f'{part}/ADE_{split}_{number:08d}'
            twin = coco / f'{split}2017/{number:012d}.jpg'
            assert (ade20k / f'images/{name}.jpg').read_bytes() == twin.read_bytes()
            stored = cv2.imread(str(ade20k / f'annotations/{name}.png'), cv2.IMREAD_UNCHANGED)
            scene = make_scene(number - 1, SMALL['size'], SMALL['seed'], split)
            assert stored.dtype == np.uint8
            np.testing.assert_array_equal(stored, label_map(scene))
            assert set(stored[~scene.masks.any(0)]) <= {0, 1}
            top = scene.masks[-1]  # whole, with an ignored band around it
            assert set(stored[top]) == {scene.labels[-1] + 2}
            assert (stored[:, 1:][top[:, :-1] & ~top[:, 1:]] == 0).all()


def test_folders_and_lists_hold_the_same(tmp_path):
    folders = write_image_folders(tmp_path / 'folders', **SMALL)
    lists = write_image_lists(tmp_path / 'lists', **SMALL)
    assert (lists / 'classes.txt').read_text().split() == list(CLASSES)
    for split, count in (('train', 5), ('val', 3)):
        lines = (lists / f'{split}_list.txt').read_text().splitlines()
        assert len(lines) == count
        for index, line in enumerate(lines):
            name, label = line.split()
            scene = make_scene(index, SMALL['size'], SMALL['seed'], split, max_objects=1)
            assert [int(label)] == list(scene.labels)
            in_folder = folders / split / CLASSES[int(label)] / name
            assert in_folder.read_bytes() == (lists / split / name).read_bytes()


@pytest.mark.parametrize('write', WRITERS)
def test_a_second_call_writes_nothing(write, tmp_path, monkeypatch):
    folder = write(str(tmp_path / 'new/data'), **SMALL)
    assert folder == tmp_path / 'new/data'
    before = contents(folder)
    monkeypatch.delattr(shapes, 'make_scene')
    assert write(folder, **SMALL) == folder
    assert contents(folder) == before


@pytest.mark.parametrize('write', WRITERS)
def test_an_interrupted_call_is_started_again(write, tmp_path, monkeypatch):
    whole = contents(write(tmp_path / 'whole', **SMALL))
    save = shapes._save

    def save_three(image, path, saved=[]):  # noqa: B006
        saved.append(path)
        if len(saved) > 3:
            raise KeyboardInterrupt
        save(image, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shapes, '_save', save_three)
        write(tmp_path / 'broken', **SMALL)
    assert contents(write(tmp_path / 'broken', **SMALL)) == whole
    next((tmp_path / 'broken').rglob('*.jpg')).unlink()
    assert contents(write(tmp_path / 'broken', **SMALL)) == whole


def test_folders_of_something_else_are_not_touched(tmp_path):
    before = contents(write_coco(tmp_path / 'data', **SMALL))
    for change, message in (
        (dict(num_train=3), 'num_train 5 instead of 3; remove that folder or choose another one'),
        (dict(size=(64, 49)), r'size \[64, 48\] instead of \[64, 49\]'),
        (dict(seed=1), 'seed 5 instead of 1'),
    ):
        with pytest.raises(FileExistsError, match=message):
            write_coco(tmp_path / 'data', **dict(SMALL, **change))
    with pytest.raises(FileExistsError, match="layout 'coco' instead of 'lists'"):
        write_image_lists(tmp_path / 'data', **SMALL)
    assert contents(tmp_path / 'data') == before
    for name, text in (('mine.txt', 'x'), ('shapes.json', 'no json'), ('shapes.json', '[1]')):
        (tmp_path / 'mine').mkdir(exist_ok=True)
        (tmp_path / 'mine' / name).write_text(text)
        with pytest.raises(FileExistsError, match='is not empty and holds no data set of this'):
            write_coco(tmp_path / 'mine', **SMALL)
        with pytest.raises(FileExistsError, match='is a file, expected a folder'):
            write_coco(tmp_path / 'mine' / name, **SMALL)
        assert (tmp_path / 'mine' / name).read_text() == text


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_train=0), 'num_train must be an integer >= 1, got 0'),
        (dict(num_val=-1), 'num_val must be an integer >= 1'),
        (dict(size=(128, 16)), r'size must be at least \(32, 32\), got \(128, 16\)'),
        (dict(seed='a'), "seed must be an integer >= 0, got 'a'"),
    ],
)
def test_arguments_outside_their_range(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_ade20k(tmp_path / 'data', **arguments)
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize('layout, write', zip(['coco', 'ade20k', 'folders', 'lists'], WRITERS))
def test_the_tool_writes_each_layout(layout, write, tmp_path, capsys):
    tool = runpy.run_path(str(ROOT / 'tools/make_demo_data.py'))['main']
    options = ['--num-train', '2', '--num-val', '1', '--size', '48', '40', '--seed', '4']
    tool([layout, str(tmp_path / 'tool'), *options])
    assert '2 training and 1 validation images' in capsys.readouterr().out
    assert contents(tmp_path / 'tool') == contents(write(tmp_path / 'call', 2, 1, (48, 40), 4))
    with pytest.raises(UserError, match=r'size must be at least \(32, 32\), got \(8, 8\)'):
        tool([layout, str(tmp_path / 'data'), '--size', '8', '8'])
