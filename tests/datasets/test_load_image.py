"""What becomes of each broken or unusual image."""

import os
import re

import numpy as np
import pytest
from bad_images import BAD_IMAGES, SIZE, encode, exif_rotated, picture
from mmengine.config import Config
from PIL import Image
from torch.utils.data import DataLoader

from cyclemlp_mm.datasets import CheckLabels, load_image
from cyclemlp_mm.datasets.image_notes import MOST_IN_A_ROW, NOTES, CollateWithNotes, NotingStep
from cyclemlp_mm.datasets.load_image import (
    UNSURE_KIND,
    LoadCheckedImage,
    as_picture,
    read_image,
    resize_scales,
)
from cyclemlp_mm.datasets.load_labels import LoadCheckedLabels
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.preflight.findings import Report
from cyclemlp_mm.preflight.images import check_channels, check_images

mmcv_transforms = pytest.importorskip('mmcv.transforms')


def load(path, is_evaluation=False, **known):
    transform = LoadCheckedImage(mmcv_transforms.LoadImageFromFile(), is_evaluation)
    known = known or dict(height=SIZE[1], width=SIZE[0])
    return transform(dict(img_path=str(path), **known)), transform.notes


@pytest.mark.parametrize('name', BAD_IMAGES)
def test_outcome(name, tmp_path):
    content, outcome, reason = BAD_IMAGES[name]
    (tmp_path / name).write_bytes(content())
    results, notes = load(tmp_path / name)
    assert [note.outcome for note in notes] == [outcome] * (outcome != 'read')
    assert all(re.search(reason, note.reason) and note.path.endswith(name) for note in notes)
    if outcome == 'skipped':
        assert results is None
        results, _ = load(tmp_path / name, is_evaluation=True)
        assert not results['img'].any()  # black, in its annotations' size
    assert results['img'].shape == (SIZE[1], SIZE[0], 3)
    assert results['img'].dtype == np.uint8
    assert results['img_shape'] == results['ori_shape'] == results['img'].shape[:2]


def test_a_plain_image_is_what_mmcv_loads(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(encode(picture()))
    results, _ = load(tmp_path / 'a.jpg')
    expected = mmcv_transforms.LoadImageFromFile()(dict(img_path=str(tmp_path / 'a.jpg')))
    assert np.array_equal(results['img'], expected['img'])


@pytest.mark.parametrize('size', [(1, 1), (20000, 10)])
def test_odd_sizes_that_are_annotated_so_are_read(size, tmp_path):
    (tmp_path / 'a.jpg').write_bytes(encode(picture(size=size)))
    results, notes = load(tmp_path / 'a.jpg', height=size[1], width=size[0])
    assert results['img'].shape == (size[1], size[0], 3) and not notes


def test_an_image_too_long_for_the_pipeline(tmp_path):
    """Resize would round its short side to 0 pixels and raise, in a worker process."""
    (tmp_path / 'a.png').write_bytes(encode(picture(size=(20000, 40)), 'PNG'))
    resize = mmcv_transforms.Resize(scale=(128, 128), keep_ratio=True)
    scales = resize_scales([resize])
    info = dict(img_path=str(tmp_path / 'a.png'), height=40, width=20000)
    load = LoadCheckedImage(mmcv_transforms.LoadImageFromFile(), False, scales)
    assert load(dict(info)) is None
    assert 'is too long (20000×40)' in load.notes[0].reason
    results = LoadCheckedImage(load.transform, True, scales)(dict(info))
    assert results['ori_shape'] == (40, 20000) and not results['img'].any()  # counts, in its size
    assert results['img'].shape == (40, 64, 3)  # no side longer than those of its annotations
    assert resize(results)['img'].shape == (80, 128, 3)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (4, 5)])
def test_labels_keep_a_side_of_one_pixel(size, tmp_path):
    loading = pytest.importorskip('mmseg.datasets.transforms.loading')
    labels = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
    Image.fromarray(labels).save(tmp_path / 'a.png')
    results = LoadCheckedLabels(loading.LoadAnnotations())(
        dict(
            seg_map_path=str(tmp_path / 'a.png'),
            ori_shape=size,
            reduce_zero_label=True,
            label_map={1: 5},
            seg_fields=[],
        )
    )
    expected = labels - 1  # 0 becomes 255, ignored
    expected[expected == 1] = 5
    assert np.array_equal(results['gt_seg_map'], expected)
    assert results['seg_map_path'] == str(tmp_path / 'a.png')
    assert results['seg_fields'] == ['gt_seg_map']


@pytest.mark.parametrize(
    'settings, ignore_index, stray',
    [
        (
            dict(reduce_zero_label=False),
            255,
            'labels .9. name no class; with 3 classes, labels are 0',
        ),
        (dict(reduce_zero_label=True), 255, 'labels .9. name no class.*0 .ignore. and 1 to 3'),
        (dict(reduce_zero_label=False), 9, None),  # the head's and the metric's own
        (dict(reduce_zero_label=False, own=True), 255, None),  # the pipeline says what 9 is
    ],
)
@pytest.mark.parametrize('wrapped', [False, True])
def test_stray_labels_stop_an_evaluation(settings, ignore_index, stray, wrapped, tmp_path):
    """mmseg's metric leaves them out: nan, or a figure of the other pixels."""
    datasets = pytest.importorskip('mmseg.datasets')
    Image.fromarray(np.array([[1, 1], [2, 9]], np.uint8)).save(tmp_path / 'a.png')
    Image.new('RGB', (2, 2)).save(tmp_path / 'a.jpg')
    settings = dict(settings)
    check = [CheckLabels(3, ignore_label=9)] * settings.pop('own', False)
    dataset = datasets.BaseSegDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='', seg_map_path=''),
        metainfo=dict(classes=('a', 'b', 'c')),
        pipeline=[
            mmcv_transforms.LoadImageFromFile(),
            pytest.importorskip('mmseg.datasets.transforms').LoadAnnotations(),
            *check,
        ],
        **settings,
    )
    if wrapped:
        dataset = pytest.importorskip('mmengine.dataset').RepeatDataset(dataset, 2)
    load_image.check_images(dataset, True, ignore_index=ignore_index)
    if stray is None:
        assert dataset[0]['gt_seg_map'].max() in (9, 255)
    else:
        with pytest.raises(UserError, match=stray):
            dataset[0]


def test_scales_of_a_pipeline():
    t = mmcv_transforms
    random = dict(resize_type=t.Resize, keep_ratio=True)
    steps = [
        t.Resize(scale=(1333, 800), keep_ratio=True),
        t.Resize(scale=(9, 9)),  # keeps no ratio, so that no side can vanish
        t.RandomResize(scale=(2048, 512), ratio_range=(0.5, 2.0), **random),
        t.RandomResize(scale=[(500, 300), (900, 200)], **random),
        t.RandomChoice([[t.RandomChoiceResize(scales=[(480, 1333), (640, 1333)], **random)]]),
        t.Resize(scale=96, keep_ratio=True),
    ]
    expected = [(1333, 800), (1024, 256), (500, 200), (480, 1333), (96, 96)]
    assert sorted(resize_scales(steps)) == sorted(expected)


@pytest.mark.parametrize('label_size, fits', [(SIZE, True), ((48, 64), True), ((30, 30), False)])
def test_a_label_image_says_the_size_as_well(label_size, fits, tmp_path):
    """A photograph that EXIF turns fits labels of either orientation."""
    (tmp_path / 'a.jpg').write_bytes(BAD_IMAGES['turned.jpg'][0]())
    (tmp_path / 'a.png').write_bytes(encode(picture('L', label_size), 'PNG'))
    results, notes = load(tmp_path / 'a.jpg', seg_map_path=str(tmp_path / 'a.png'))
    if fits:
        assert results['img'].shape[:2] == label_size[::-1]
    else:
        assert results is None and 'annotations are for 30×30' in notes[0].reason


@pytest.mark.timeout(60)
@pytest.mark.parametrize('broken', ['missing', 'truncated', 'damaged', 'folder', 'pipe'])
def test_a_label_image_that_cannot_be_read(broken, tmp_path):
    """Another sample takes its place in training; in evaluation, all pixels are ignored."""
    loading = pytest.importorskip('mmseg.datasets.transforms.loading')
    (tmp_path / 'a.jpg').write_bytes(encode(picture()))
    label = tmp_path / 'a.png'
    whole = encode(picture('L'), 'PNG')
    if broken == 'truncated':
        label.write_bytes(whole[:-100])
    elif broken == 'damaged':
        label.write_bytes(whole[:1500] + bytes(100) + whole[1600:])
    elif broken == 'folder':
        label.mkdir()
    elif broken == 'pipe':
        os.mkfifo(label)
    info = dict(img_path=str(tmp_path / 'a.jpg'), seg_map_path=str(label), seg_fields=[])
    for is_evaluation in (False, True):
        steps = [mmcv_transforms.LoadImageFromFile(), loading.LoadAnnotations()]
        load_image.check_steps(steps, is_evaluation)
        results = steps[1](steps[0](dict(info)))
        [note] = steps[1].notes
        assert note.path.endswith('a.jpg') and 'a.png' in note.reason
        assert note.outcome == 'skipped' and not steps[0].notes
        if is_evaluation:
            assert results['gt_seg_map'].shape == SIZE[::-1]
            assert (results['gt_seg_map'] == 255).all()
        else:
            assert results is None


def test_many_in_a_row_are_a_wrong_path():
    transform = LoadCheckedImage(mmcv_transforms.LoadImageFromFile(), False)
    for _ in range(MOST_IN_A_ROW - 1):
        assert transform(dict(img_path='nowhere/a.jpg')) is None
    with pytest.raises(UserError, match=f'{MOST_IN_A_ROW} images in a row.*nowhere/a.jpg'):
        transform(dict(img_path='nowhere/a.jpg'))


@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind', ['missing', 'folder', 'pipe', 'device'])
def test_what_cannot_be_opened_is_skipped_and_a_pipe_not_read(kind, tmp_path):
    path = tmp_path / 'a.jpg'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    said = 'not a regular file' if kind in ('pipe', 'device') else 'cannot be'
    for settings in ({}, dict(color_type='unchanged')):
        transform = LoadCheckedImage(mmcv_transforms.LoadImageFromFile(**settings), False)
        assert transform(dict(img_path=str(path))) is None
        assert said in transform.notes[0].reason


def deep_values(folder, suffix, largest, colours=False):
    """16 bits, with values from 0 to ``largest``."""
    cv2 = pytest.importorskip('cv2')
    ramp = np.linspace(0, largest, 64 * 48).reshape(48, 64).astype(np.uint16)
    path = folder / f'deep{suffix}'
    assert cv2.imwrite(str(path), np.stack([ramp] * 3, -1) if colours else ramp)
    return path, ramp


@pytest.mark.parametrize(
    'largest, said', [(700, '=1023 '), (255, '=255 '), (40000, None), (60000, None)]
)
def test_a_hot_pixel_does_not_make_an_image_bright(largest, said, tmp_path):
    path, ramp = deep_values(tmp_path, '.png', largest)
    ramp[0, 0] = 65535
    pytest.importorskip('cv2').imwrite(str(path), ramp)
    _, [note] = load(path)
    assert ('nearly black' in note.reason) == bool(said) and (said or '') in note.reason
    assert said or note.reason == 'more than 8 bits'


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('colours', [False, True])
def test_twelve_bits_in_sixteen(suffix, colours, tmp_path):
    """They become 0 to 15 of 255: reported, and scaled where the largest value is given."""
    path, ramp = deep_values(tmp_path, suffix, 4095, colours)
    results, [note] = load(path)
    assert results['img'].max() <= 16
    assert 'nearly black (0 to 40' in note.reason and 'image_max_value=4095' in note.reason
    transform = LoadCheckedImage(mmcv_transforms.LoadImageFromFile(), False, max_value=4095)
    results = transform(dict(img_path=str(path)))
    expected = np.round(ramp * (255 / 4095)).astype(np.uint8)
    assert np.array_equal(results['img'], np.stack([expected] * 3, -1))
    assert transform.notes[0].reason == 'more than 8 bits'


def test_grey_is_loaded_where_it_is_asked_for(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(exif_rotated((48, 64)))
    transform = mmcv_transforms.LoadImageFromFile(color_type='grayscale')
    for known, shape in ((dict(height=64, width=48), (64, 48)), ({}, (48, 64))):
        info = dict(img_path=str(tmp_path / 'a.jpg'), **known)
        results = LoadCheckedImage(transform, False)(info)
        assert results['img'].shape == shape
    (tmp_path / 'b.jpg').write_bytes(b'')
    results = LoadCheckedImage(transform, True)(
        dict(img_path=str(tmp_path / 'b.jpg'), height=9, width=7)
    )
    assert results['img'].shape == (9, 7)


class LoadArray(mmcv_transforms.LoadImageFromFile):
    """A loading step of somebody else, as LoadImageFromNpyFile of newer mmseg."""

    def transform(self, results):
        results['img'] = np.load(results['img_path'])
        return results


@pytest.mark.parametrize(
    'channels, model, expected',
    [
        (4, {}, ['backbone.in_channels: is 3, but', 'data_preprocessor.mean: has 3 values']),
        (4, dict(in_channels=4, mean=None), []),
        (4, dict(in_channels=4, mean=[0]), []),
        (3, dict(in_channels=1), ['backbone.in_channels: is 1, but']),
        (1, {}, []),  # mmseg makes three of it, by three means
        (1, dict(mean=[0]), ['backbone.in_channels: is 3, but']),
        (1, dict(in_channels=1, mean=[0]), []),
        (1, dict(scope='mmdet'), ['data_preprocessor.mean: has 3 values']),
    ],
)
def test_channels_of_images_and_model(channels, model, expected, tmp_path):
    np.save(tmp_path / 'a.npy', np.ones((4, 6, channels), np.float32))
    settings = dict(dict(in_channels=3, mean=[1, 2, 3], scope='mmseg'), **model)
    cfg = Config(
        dict(
            default_scope=settings['scope'],
            model=dict(
                backbone=dict(type='CycleMLP', in_channels=settings['in_channels']),
                data_preprocessor=dict(mean=settings['mean']),
            ),
        )
    )
    report, seen = Report(), set()
    loader = LoadCheckedImage(LoadArray(), False)
    for _ in range(2):  # of training and validation: reported once
        check_channels(report, cfg, [(str(tmp_path / 'a.npy'), {})], loader, seen)
    found = sorted(str(finding) for finding in report.of('error'))
    assert len(found) == len(expected), found
    assert all(f'loaded with {channels} channel' in text for text in found)
    assert all(any(part in text for text in found) for part in expected)


def test_other_loading_steps_skip_what_they_cannot_read(tmp_path):
    np.save(tmp_path / 'a.npy', np.ones((4, 6, 5), np.float32))
    (tmp_path / 'b.npy').write_bytes(b'no array')
    step = LoadArray()
    results = LoadCheckedImage(step, False)(dict(img_path=str(tmp_path / 'a.npy')))
    assert results['img'].shape == (4, 6, 5) and results['img'].dtype == np.float32
    transform = LoadCheckedImage(step, False)
    assert transform(dict(img_path=str(tmp_path / 'b.npy'))) is None
    assert 'cannot be read by LoadArray' in transform.notes[0].reason
    with pytest.raises(UserError, match=r'b\.npy.*An evaluation needs all'):
        LoadCheckedImage(step, True)(dict(img_path=str(tmp_path / 'b.npy')))
    assert as_picture(results['img']).shape == (4, 6, 3)


@pytest.mark.parametrize(
    'orientation, size, said',
    [
        (3, SIZE, UNSURE_KIND),
        (2, SIZE, UNSURE_KIND),
        (6, (48, 48), UNSURE_KIND),
        (6, SIZE, 'EXIF rotation left out, as in the annotations'),
        (6, SIZE[::-1], 'EXIF rotation'),
        (1, SIZE, None),
    ],
)
def test_turns_that_keep_the_size_are_reported_as_such(orientation, size, said, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / 'a.jpg').write_bytes(encode(picture(size=size), exif=exif))
    known = SIZE if said != UNSURE_KIND else size
    _, unusual = read_image(str(tmp_path / 'a.jpg'), dict(height=known[1], width=known[0]))
    assert unusual == ([said] if said else [])
    _, unusual = read_image(str(tmp_path / 'a.jpg'), {})  # nothing is annotated
    assert unusual == ['EXIF rotation'] * (said is not None)
    report = Report()
    info = (str(tmp_path / 'a.jpg'), dict(height=known[1], width=known[0]))
    check_images(report, [info], True, 0.05)
    assert [finding.level for finding in report.findings] == (
        [] if said is None else ['warning' if said == UNSURE_KIND else 'note']
    )


@pytest.mark.parametrize('workers', [0, 2])
def test_notes_travel_in_the_batch(workers, tmp_path):
    """Of all images that a worker process looked at, skipped ones too; the hook takes them out."""
    base = pytest.importorskip('mmengine.dataset')
    for name, content in (('a.jpg', b''), ('b.jpg', encode(picture('L')))):
        (tmp_path / name).write_bytes(content)

    class Data(base.BaseDataset):
        def load_data_list(self):
            return [dict(img_path=str(tmp_path / name)) for name in ('a.jpg', 'b.jpg')]

    data = Data(pipeline=[mmcv_transforms.LoadImageFromFile()])
    loader = DataLoader(data, 2, num_workers=workers, collate_fn=base.pseudo_collate)
    for _ in range(2):  # as the hook does before each epoch
        load_image.check_loader(loader, False, None, 255)
    [batch] = loader
    assert {(note.path[-5:], note.outcome) for note in batch.pop(NOTES)} == {
        ('a.jpg', 'skipped'),
        ('b.jpg', 'converted'),
    }
    assert [image.shape for image in batch['img']] == [(48, 64, 3)] * 2


def test_a_collate_function_without_a_dict_gets_its_notes_logged(log_lines):
    step = NotingStep()
    step.note_read('a.jpg', ['grey'])
    assert CollateWithNotes(tuple, [step])([1, 2]) == (1, 2) and not step.notes
    assert any('image converted: a.jpg: grey' in line for line in log_lines)
