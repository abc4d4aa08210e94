"""The generator of demo data: scenes, COCO's layout, ADE20K's layout, the folder's rules."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclemlp_mm.datasets import ade20k_writer, coco_writer
from cyclemlp_mm.datasets.mask_polygons import mask_to_polygons
from cyclemlp_mm.datasets.shape_scenes import visible_enough
from cyclemlp_mm.datasets.shapes import (
    CLASSES,
    PALETTE,
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
    label_map,
    make_scene,
    write_ade20k,
    write_coco,
)
from cyclemlp_mm.errors import UserError

SIZES = [(32, 32), (33, 47), (128, 128), (320, 200), (41, 300)]
SMALL = dict(num_train=6, num_val=3, size=(64, 48), seed=5)


def digest(*arrays):
    """SHA-256 of arrays' shapes and values, whatever the machine's byte order."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(repr(array.shape).encode())
        sha.update(array.astype('<i8').tobytes())
    return sha.hexdigest()


def contents(folder):
    """All files of a folder by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def coco_folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('coco'), **SMALL)


@pytest.fixture(scope='module')
def ade20k_folder(tmp_path_factory):
    return write_ade20k(tmp_path_factory.mktemp('ade20k'), **SMALL)


# Scenes


# The generator promises the same data on every machine. If a change of it is meant to change the
# data, raise GENERATOR_VERSION and put the new values here.
@pytest.mark.parametrize(
    'arguments, frozen',
    [
        (dict(index=0), '6a7a82f7ef9b48ace793083da93f9fabeff7da458d7948f17b2cbf6c99ded8c4'),
        (
            dict(index=7, size=(33, 47), seed=3),
            'bec37130a854f1be33ab6c1454890919fb6228b217f2a1002c5874fd149a3463',
        ),
        (
            dict(index=1, size=(320, 200), split='val'),
            '8bb0af9eac649a8e011816cb6541b2fc5c7ebe5fb4ee50062f259e09a552503b',
        ),
        (
            dict(index=2**32 - 1, size=(96, 64), seed=2**32 - 1, max_objects=20),
            '91f10efa58c1fbdc9ac8c3255205078ceedc79023f0ee484734d9355cdd921e5',
        ),
    ],
)
def test_scene_is_frozen(arguments, frozen):
    scene = make_scene(**arguments)
    assert digest(scene.image, scene.masks, scene.labels) == frozen


@pytest.mark.parametrize('size', SIZES)
def test_scene_of_any_size(size):
    width, height = size
    for index in range(40):
        scene = make_scene(index, size)
        number = len(scene.labels)
        assert 1 <= number <= 6
        assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (number, height, width) and scene.masks.dtype == np.bool_
        assert scene.labels.shape == (number,) and scene.labels.dtype == np.int64
        assert scene.labels.min() >= 0 and scene.labels.max() < len(CLASSES)
        assert scene.masks.sum(axis=0).max() == 1, 'visible parts overlap'
        assert scene.masks.sum(axis=(1, 2)).min() >= 16


def test_scene_depends_on_each_argument():
    scenes = [make_scene(0), make_scene(1), make_scene(0, seed=1), make_scene(0, split='val')]
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    np.testing.assert_array_equal(make_scene(0).image, scenes[0].image)


def test_scene_holds_at_most_max_objects():
    assert all(len(make_scene(index, max_objects=1).labels) == 1 for index in range(20))
    most = max(len(make_scene(index, (256, 256), max_objects=12).labels) for index in range(20))
    assert 6 < most <= 12


def test_classes_are_balanced():
    labels = np.concatenate([make_scene(index, (64, 64)).labels for index in range(300)])
    shares = np.bincount(labels, minlength=len(CLASSES)) / labels.size
    assert shares.min() > 0.8 / len(CLASSES) and shares.max() < 1.2 / len(CLASSES), shares


def test_shapes_stand_out_from_the_background():
    # Compare pixels just inside and just outside of the shape's right edge, past its blended rim.
    contrasts = []
    for index in range(40):
        scene = make_scene(index, max_objects=1)
        image, mask = scene.image.astype(int), scene.masks[0]
        edges = mask[:, 2:-2] & ~mask[:, 4:] & mask[:, :-4]
        rows, columns = np.nonzero(edges)
        difference = np.abs(image[rows, columns + 1] - image[rows, columns + 4]).sum(axis=1)
        contrasts.append(np.median(difference))
    assert min(contrasts) > 100


def test_visible_enough():
    assert visible_enough(visible=16, whole=32)
    assert not visible_enough(visible=16, whole=33)
    assert not visible_enough(visible=15, whole=15)


def test_palettes_hold_a_colour_per_class():
    assert len(PALETTE) == len(CLASSES) == len(set(PALETTE))
    assert len(SEGMENTATION_PALETTE) == len(SEGMENTATION_CLASSES) == len(set(SEGMENTATION_PALETTE))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(index=-1), r'index must be an integer from 0 to 4294967295, got -1'),
        (dict(index=1.5), r'index must be an integer .* got 1\.5'),
        (dict(index=0, size=(31, 64)), r'size must be at least \(32, 32\), got \(31, 64\); choose'),
        (dict(index=0, size=64), r'size must be two integers \(width, height\), got 64; pass'),
        (dict(index=0, size=(64, 64, 3)), r'size must be two integers \(width, height\)'),
        (dict(index=0, size=(64.5, 64)), r'size must be two integers \(width, height\)'),
        (dict(index=0, seed=-1), r'seed must be an integer from 0 to 4294967295, got -1'),
        (dict(index=0, seed=2**32), r'seed must be an integer from 0'),
        (dict(index=0, split='test'), r"split must be one of \('train', 'val'\), got 'test'"),
        (dict(index=0, max_objects=0), r'max_objects must be an integer from 1 to 1000, got 0'),
    ],
)
def test_scene_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scene(**arguments)


# Polygons


def polygons_to_mask(polygons, height, width):
    """The mask that COCO's tools make of polygons."""
    tools = pytest.importorskip('pycocotools.mask')
    return tools.decode(tools.merge(tools.frPyObjects(polygons, height, width))).astype(bool)


@pytest.mark.parametrize(
    'drawing, parts',
    [
        (['###', '###'], 1),
        (['##..', '..##'], 2),  # touching at a corner only
        (['#.#', '###'], 1),
        (['###', '#.#', '###'], 2),  # a hole
        (['#####', '#.#.#', '#####'], 3),
        (['####', '#..#', '#.##', '####'], 2),
        (['#####', '#...#', '#.#.#', '#...#', '#####'], 3),  # an island in a hole
    ],
)
def test_polygons_of_a_drawing(drawing, parts):
    mask = np.array([[pixel == '#' for pixel in line] for line in drawing])
    polygons = mask_to_polygons(mask)
    assert len(polygons) == parts
    np.testing.assert_array_equal(polygons_to_mask(polygons, *mask.shape), mask)


def test_polygons_of_noise():
    # Masks full of holes, islands and touching corners.
    for seed in range(60):
        mask = np.random.default_rng(seed).random((13, 17)) < (0.3 + 0.01 * seed)
        polygons = mask_to_polygons(mask)
        np.testing.assert_array_equal(polygons_to_mask(polygons, *mask.shape), mask)


def test_no_polygon_of_an_empty_mask():
    assert mask_to_polygons(np.zeros((4, 5), dtype=bool)) == []


# COCO's layout


def test_coco_annotations_are_frozen(coco_folder):
    # The json holds geometry only, no encoded image: it is the same with every Pillow.
    digests = {
        split: hashlib.sha256(
            (coco_folder / 'annotations' / f'instances_{split}2017.json').read_bytes()
        ).hexdigest()
        for split in ('train', 'val')
    }
    assert digests == {
        'train': '00e71c1cac80aaba22c9cf20c0213998d89f93c7809f377e12a8eaeb996c7b3d',
        'val': 'c90090ac78098bf83707211e4cf4d5163bda1d19ebcd532e74a1693699ba0c1a',
    }


@pytest.mark.parametrize('split, count', [('train', 6), ('val', 3)])
def test_coco_images(coco_folder, split, count):
    files = sorted((coco_folder / f'{split}2017').iterdir())
    assert [file.name for file in files] == [f'{number:012d}.jpg' for number in range(1, count + 1)]
    for index, file in enumerate(files):
        with Image.open(file) as image:
            assert image.size == SMALL['size'] and image.mode == 'RGB'
            decoded = np.asarray(image).astype(int)
        drawn = make_scene(index, SMALL['size'], SMALL['seed'], split).image
        assert np.abs(decoded - drawn).mean() < 4


@pytest.mark.parametrize('split, count', [('train', 6), ('val', 3)])
def test_coco_annotations(coco_folder, split, count):
    tools = pytest.importorskip('pycocotools.coco')
    rle = pytest.importorskip('pycocotools.mask')
    coco = tools.COCO(str(coco_folder / 'annotations' / f'instances_{split}2017.json'))
    assert sorted(coco.getImgIds()) == list(range(1, count + 1))
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    seen = []
    for index, image in enumerate(coco.loadImgs(sorted(coco.getImgIds()))):
        assert (image['width'], image['height']) == SMALL['size']
        assert (coco_folder / f'{split}2017' / image['file_name']).is_file()
        scene = make_scene(index, SMALL['size'], SMALL['seed'], split)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image['id']))
        assert [annotation['category_id'] - 1 for annotation in annotations] == list(scene.labels)
        for annotation, visible in zip(annotations, scene.masks):
            seen.append(annotation['id'])
            assert annotation['iscrowd'] == 0
            mask = coco.annToMask(annotation)
            # Equal, not just alike: the polygons run along pixel edges, and pycocotools decides
            # on a pixel by the edges left and above its centre.
            np.testing.assert_array_equal(mask.astype(bool), visible)
            assert annotation['area'] == visible.sum() >= 16
            rows, columns = np.nonzero(visible)
            assert annotation['bbox'] == [
                columns.min(),
                rows.min(),
                columns.max() + 1 - columns.min(),
                rows.max() + 1 - rows.min(),
            ]
            assert all(isinstance(value, float) for value in annotation['bbox'])
            assert all(
                isinstance(value, float)
                for polygon in annotation['segmentation']
                for value in polygon
            )
            encoded = rle.encode(np.asfortranarray(mask))
            np.testing.assert_array_equal(rle.decode(encoded), mask)
            assert rle.area(encoded) == annotation['area']
            assert rle.toBbox(encoded).tolist() == annotation['bbox']
    assert seen == list(range(1, len(coco.anns) + 1))


def test_coco_masks_of_many_scenes():
    # Among 150 crowded scenes there are masks in several parts and masks with holes.
    several = 0
    for index in range(150):
        for mask in make_scene(index, (96, 80), max_objects=10).masks:
            polygons = mask_to_polygons(mask)
            several += len(polygons) > 1
            np.testing.assert_array_equal(polygons_to_mask(polygons, *mask.shape), mask)
    assert several > 10


@pytest.mark.parametrize('write', [write_coco, write_ade20k])
def test_more_scenes_leave_the_first_ones_alone(write, tmp_path):
    few = contents(write(tmp_path / 'few', 2, 1, (40, 40)))
    many = contents(write(tmp_path / 'many', 4, 2, (40, 40)))
    images = [name for name in few if name.endswith(('.jpg', '.png'))]
    assert images and all(few[name] == many[name] for name in images)
    if write is write_coco:
        name = 'annotations/instances_train2017.json'
        first = json.loads(few[name])['annotations']
        assert json.loads(many[name])['annotations'][: len(first)] == first


# ADE20K's layout


@pytest.mark.parametrize(
    'split, folder, count', [('train', 'training', 6), ('val', 'validation', 3)]
)
def test_ade20k_pairs(ade20k_folder, coco_folder, split, folder, count):
    images = sorted((ade20k_folder / 'images' / folder).iterdir())
    maps = sorted((ade20k_folder / 'annotations' / folder).iterdir())
    stems = [f'ADE_{split}_{number:08d}' for number in range(1, count + 1)]
    assert [path.name for path in images] == [stem + '.jpg' for stem in stems]
    assert [path.name for path in maps] == [stem + '.png' for stem in stems]
    for index, (image, labels) in enumerate(zip(images, maps)):
        twin = coco_folder / f'{split}2017' / f'{index + 1:012d}.jpg'
        assert image.read_bytes() == twin.read_bytes()
        with Image.open(labels) as stored:
            assert stored.mode == 'L' and stored.size == SMALL['size']
            stored = np.asarray(stored)
        scene = make_scene(index, SMALL['size'], SMALL['seed'], split)
        np.testing.assert_array_equal(stored, label_map(scene))


def test_ade20k_classes(ade20k_folder):
    lines = (ade20k_folder / 'classes.txt').read_text().splitlines()
    assert lines == list(SEGMENTATION_CLASSES) == ['background', *CLASSES]


def test_label_map():
    for index in range(20):
        scene = make_scene(index)
        labels = label_map(scene)
        assert labels.dtype == np.uint8 and labels.shape == scene.image.shape[:2]
        assert set(np.unique(labels)) <= set(range(len(SEGMENTATION_CLASSES) + 1))
        for mask, label in zip(scene.masks, scene.labels):
            assert set(np.unique(labels[mask])) <= {0, label + 2}
        assert set(np.unique(labels[~scene.masks.any(axis=0)])) <= {0, 1}
        # The topmost shape is whole, with a band around it.
        top = scene.masks[-1]
        assert (labels[top] != 0).all()
        right_of_top = ~top[:, 1:] & top[:, :-1]
        assert (labels[:, 1:][right_of_top] == 0).all()
    assert (
        digest(label_map(make_scene(0)))
        == 'ccbe1e3fdc5f15a1482748a5ad6a6c3a1966484079cd1891d58378addb9d5636'
    )


# The folder's rules


@pytest.mark.parametrize('write', [write_coco, write_ade20k])
def test_second_call_writes_nothing(write, tmp_path, monkeypatch):
    folder = write(str(tmp_path / 'new' / 'data'), 2, 1, (40, 40))
    assert folder == tmp_path / 'new' / 'data'
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}

    def refuse(*arguments):
        raise AssertionError('a scene was drawn')

    monkeypatch.setattr(coco_writer, 'make_scene', refuse)
    monkeypatch.setattr(ade20k_writer, 'make_scene', refuse)
    assert write(folder, 2, 1, [40, 40]) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before


@pytest.mark.parametrize(
    'write, writer', [(write_coco, coco_writer), (write_ade20k, ade20k_writer)]
)
def test_interrupted_run_is_started_again(write, writer, tmp_path, monkeypatch):
    whole = contents(write(tmp_path / 'whole', 2, 2, (40, 40)))
    saved = []
    save_jpeg = writer.save_jpeg

    def save_three(image, path):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path)
        save_jpeg(image, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, 'save_jpeg', save_three)
        write(tmp_path / 'broken', 2, 2, (40, 40))
    assert contents(tmp_path / 'broken') != whole
    assert contents(write(tmp_path / 'broken', 2, 2, (40, 40))) == whole


def test_missing_file_is_written_again(tmp_path):
    folder = write_coco(tmp_path, 2, 1, (40, 40))
    whole = contents(folder)
    (folder / 'train2017' / '000000000002.jpg').unlink()
    assert contents(write_coco(tmp_path, 2, 1, (40, 40))) == whole


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(num_train=3), r'num_train 2 instead of 3; remove that folder or choose another one'),
        (dict(size=(40, 41)), r'size \[40, 40\] instead of \[40, 41\]'),
        (dict(seed=1), r'seed 0 instead of 1'),
    ],
)
def test_refuses_folder_of_other_parameters(change, message, tmp_path):
    parameters = dict(num_train=2, num_val=1, size=(40, 40), seed=0)
    write_coco(tmp_path, **parameters)
    whole = contents(tmp_path)
    with pytest.raises(FileExistsError, match=message):
        write_coco(tmp_path, **dict(parameters, **change))
    with pytest.raises(FileExistsError, match="layout 'coco' instead of 'ade20k'"):
        write_ade20k(tmp_path, **parameters)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    'name, text',
    [
        ('notes.txt', 'mine'),
        ('shapes.json', 'no json'),
        ('shapes.json', '[1]'),
        ('shapes.json', '{}'),
    ],
)
@pytest.mark.parametrize('write', [write_coco, write_ade20k])
def test_refuses_folder_with_other_things(write, name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(FileExistsError, match='is not empty and holds no data set of this'):
        write(tmp_path, 2, 1, (40, 40))
    assert contents(tmp_path) == {name: text.encode()}


def test_refuses_file(tmp_path):
    (tmp_path / 'taken').write_text('mine')
    with pytest.raises(FileExistsError, match='is a file, expected a folder; choose another'):
        write_coco(tmp_path / 'taken', 2, 1, (40, 40))


@pytest.mark.parametrize('write', [write_coco, write_ade20k])
@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_train=0), r'num_train must be an integer from 1 to 99999999, got 0; pass one'),
        (dict(num_val=-1), r'num_val must be an integer from 1'),
        (dict(num_val=10**8), r'num_val must be an integer from 1 to 99999999, got 100000000'),
        (dict(size=(128, 16)), r'size must be at least \(32, 32\), got \(128, 16\)'),
        (dict(seed='a'), r"seed must be an integer from 0 to 4294967295, got 'a'"),
    ],
)
def test_writers_refuse(write, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / 'data', **arguments)
    assert not (tmp_path / 'data').exists()


# The tool


@pytest.fixture
def tool():
    path = Path(__file__).parents[2] / 'tools' / 'make_demo_data.py'
    spec = importlib.util.spec_from_file_location('make_demo_data', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('layout, write', [('coco', write_coco), ('ade20k', write_ade20k)])
def test_tool(tool, layout, write, tmp_path, capsys):
    tool.main(
        [
            layout,
            str(tmp_path / 'tool'),
            '--num-train',
            '2',
            '--num-val',
            '1',
            '--size',
            '48',
            '40',
            '--seed',
            '4',
        ]
    )
    assert '2 training and 1 validation images' in capsys.readouterr().out
    assert contents(tmp_path / 'tool') == contents(write(tmp_path / 'call', 2, 1, (48, 40), 4))


def test_tool_says_what_is_wrong(tool, tmp_path):
    # run_tool prints a UserError as a sentence; anything else would show a traceback.
    with pytest.raises(UserError, match=r'size must be at least \(32, 32\), got \(8, 8\)'):
        tool.main(['coco', str(tmp_path / 'data'), '--size', '8', '8'])
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='is not empty'):
        tool.main(['coco', str(tmp_path)])


def test_tool_shows_examples(tool, capsys):
    with pytest.raises(SystemExit, match='0'):
        tool.main(['--help'])
    assert 'tools/make_demo_data.py ade20k data/' in capsys.readouterr().out
