"""What becomes of each broken or unusual image, and of labels."""

import os
import re

import numpy as np
import pytest
from bad_images import BAD_IMAGES, SIZE, encode, exif_rotated, picture
from mmengine.config import Config
from PIL import Image
from torch.utils.data import DataLoader

from cyclemlp_mm.datasets import CheckLabels, image_files, load_image
from cyclemlp_mm.datasets import image_notes as notes
from cyclemlp_mm.datasets.load_image import UNSURE_KIND, LoadCheckedImage, as_picture, read_image
from cyclemlp_mm.datasets.load_labels import LoadCheckedLabels
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.preflight.files import check_channels, check_images
from cyclemlp_mm.preflight.findings import Report

cv2 = pytest.importorskip('cv2')
t = pytest.importorskip('mmcv.transforms')
KNOWN = dict(height=SIZE[1], width=SIZE[0])
TURNED = Image.Exif()
TURNED[0x0112] = 6


def load(path, is_evaluation=False, step=None, known=KNOWN, **settings):
    """Results of loading an image, and what is noted."""
    loader = LoadCheckedImage(step or t.LoadImageFromFile(), is_evaluation, **settings)
    return loader(dict(img_path=str(path), **known)), loader.notes


@pytest.mark.parametrize('name', BAD_IMAGES)
def test_outcome(name, tmp_path):
    content, outcome, reason = BAD_IMAGES[name]
    (tmp_path / name).write_bytes(content())
    results, noted = load(tmp_path / name)
    assert [note.outcome for note in noted] == [outcome] * (outcome != 'read')
    assert all(re.search(reason, note.reason) and note.path.endswith(name) for note in noted)
    if outcome == 'skipped':
        assert results is None
        results, _ = load(tmp_path / name, is_evaluation=True)
        assert not results['img'].any()  # black, in its annotations' size
    assert results['img'].shape == (SIZE[1], SIZE[0], 3) and results['img'].dtype == np.uint8
    assert results['img_shape'] == results['ori_shape'] == results['img'].shape[:2]
    if name == 'plain.jpg':
        expected = t.LoadImageFromFile()(dict(img_path=str(tmp_path / name)))
        assert np.array_equal(results['img'], expected['img'])


@pytest.mark.parametrize(
    'options, is_plain',
    [
        ({}, True),
        (dict(progressive=True, comment=b'text'), True),
        (dict(subsampling=0, dpi=(300, 300)), True),
        (dict(restart_marker_rows=1), True),
        (dict(mode='L'), False),
        (dict(mode='CMYK'), False),
        (dict(icc_profile=bytes(20)), False),
        (dict(exif=TURNED), False),
    ],
)
def test_a_plain_jpeg_has_the_facts_that_pillow_finds(options, is_plain, monkeypatch):
    mode = options.get('mode', 'RGB')
    content = encode(picture(mode), **{k: v for k, v in options.items() if k != 'mode'})
    found = image_files.image_facts(content, 'a.jpg')
    assert image_files._size_of_plain_jpeg(content) == (found.stored if is_plain else None)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)  # of a large image, Pillow finds them
    assert image_files._size_of_plain_jpeg(content) is None
    monkeypatch.undo()
    monkeypatch.setattr(image_files, '_size_of_plain_jpeg', lambda content: None)
    assert image_files.image_facts(content, 'a.jpg') == found


def test_an_image_too_long_for_the_pipeline(tmp_path):
    """Resize would round its short side to 0 pixels and raise, in a worker process."""
    (tmp_path / 'a.png').write_bytes(encode(picture(size=(20000, 40)), 'PNG'))
    settings = dict(known=dict(height=40, width=20000), least_side=128)
    results, [note] = load(tmp_path / 'a.png', **settings)
    assert results is None and 'is too long (20000×40)' in note.reason
    results, _ = load(tmp_path / 'a.png', is_evaluation=True, **settings)
    assert results['ori_shape'] == (40, 20000) and not results['img'].any()  # counts, in its size
    resize = t.Resize(scale=(128, 128), keep_ratio=True)
    assert resize(results)['img'].shape == (80, 128, 3)
    assert load(tmp_path / 'a.png', **settings | dict(least_side=251))[0] is not None


RANDOM = dict(resize_type=t.Resize, keep_ratio=True)


@pytest.mark.parametrize(
    'step, expected',
    [
        (t.Resize(scale=(1333, 800), keep_ratio=True), 1333),
        (t.Resize(scale=96, keep_ratio=True), 96),
        (t.Resize(scale=(9, 9)), None),  # keeps no ratio, so that no side can vanish
        (t.RandomResize(scale=(2048, 512), ratio_range=(0.5, 2.0), **RANDOM), 1024),
        (t.RandomResize(scale=[(500, 300), (900, 200)], **RANDOM), 500),
        (t.RandomChoice([[t.RandomChoiceResize(scales=[(480, 999), (640, 1333)], **RANDOM)]]), 999),
    ],
)
def test_the_least_side_that_a_pipeline_resizes_to(step, expected):
    [loading] = load_image.check_steps([t.LoadImageFromFile(), step], False)
    assert loading.least_side == expected


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (4, 5)])
def test_labels_keep_a_side_of_one_pixel(size, tmp_path):
    loading = pytest.importorskip('mmseg.datasets.transforms.loading')
    labels = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
    Image.fromarray(labels).save(tmp_path / 'a.png')
    info = dict(seg_map_path=str(tmp_path / 'a.png'), ori_shape=size, seg_fields=[])
    info |= dict(reduce_zero_label=True, label_map={1: 5})
    results = LoadCheckedLabels(loading.LoadAnnotations())(info)
    expected = labels - 1  # 0 becomes 255, ignored
    expected[expected == 1] = 5
    assert np.array_equal(results['gt_seg_map'], expected)
    assert results['seg_fields'] == ['gt_seg_map']


def test_labels_of_more_than_eight_bits(tmp_path):
    """As 8 bits, 257 would be class 1."""
    loading = pytest.importorskip('mmseg.datasets.transforms.loading')
    info = dict(seg_map_path=str(tmp_path / 'a.png'), ori_shape=(1, 2), seg_fields=[])
    step = LoadCheckedLabels(loading.LoadAnnotations())
    Image.fromarray(np.array([[1, 3]], np.uint16)).save(tmp_path / 'a.png')
    assert step(dict(info))['gt_seg_map'].tolist() == [[1, 3]]
    Image.fromarray(np.array([[1, 257]], np.uint16)).save(tmp_path / 'a.png')
    with pytest.raises(UserError, match=r'a\.png has the label 257, but labels are .* 0 to 255'):
        step(dict(info))


@pytest.mark.parametrize(
    'reduces, own, ignore_index, stray',
    [
        (False, None, 255, r'labels \[9\] name no class; the classes are 0 to 2.*--ignore-label'),
        (True, None, 255, r'labels \[9\] name no class; the classes are 1 to 3'),
        (False, None, 9, None),  # the head's and the metric's own
        (False, 9, 255, None),  # the pipeline says what 9 is
        (False, 8, 255, r'labels \[9\] name no class'),
    ],
)
def test_stray_labels_stop_an_evaluation(reduces, own, ignore_index, stray, tmp_path):
    """mmseg's metric leaves them out: nan, or a figure of the other pixels."""
    datasets = pytest.importorskip('mmseg.datasets')
    Image.fromarray(np.array([[1, 1], [2, 9]], np.uint8)).save(tmp_path / 'a.png')
    Image.new('RGB', (2, 2)).save(tmp_path / 'a.jpg')
    steps = [t.LoadImageFromFile(), datasets.transforms.LoadAnnotations()]
    steps += [CheckLabels(3, ignore_label=own)] * (own is not None)
    dataset = datasets.BaseSegDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='', seg_map_path=''),
        metainfo=dict(classes=('a', 'b', 'c')),
        pipeline=steps,
        reduce_zero_label=reduces,
    )
    dataset = pytest.importorskip('mmengine.dataset').RepeatDataset(dataset, 2)
    load_image.check_loader(DataLoader(dataset), True, None, ignore_index)
    if stray is None:
        assert dataset[0]['gt_seg_map'].max() == (255 if own else 9)
    else:
        with pytest.raises(UserError, match=rf'a\.png: .*{stray}'):
            dataset[0]


def test_labels_of_colours_and_no_labels():
    with pytest.raises(UserError, match='one channel'):
        CheckLabels(3)(dict(gt_seg_map=np.zeros((4, 4, 3), np.uint8)))
    assert CheckLabels(3)(dict(img=1)) == dict(img=1)


@pytest.mark.parametrize('label_size, fits', [(SIZE, True), ((48, 64), True), ((30, 30), False)])
def test_a_label_image_says_the_size_as_well(label_size, fits, tmp_path):
    """A photograph that EXIF turns fits labels of either orientation."""
    (tmp_path / 'a.jpg').write_bytes(BAD_IMAGES['turned.jpg'][0]())
    (tmp_path / 'a.png').write_bytes(encode(picture('L', label_size), 'PNG'))
    results, noted = load(tmp_path / 'a.jpg', known=dict(seg_map_path=str(tmp_path / 'a.png')))
    if fits:
        assert results['img'].shape[:2] == label_size[::-1]
    else:
        assert results is None and 'annotations are for 30×30' in noted[0].reason


def make(path, kind):
    """What cannot be opened, or no end is read of."""
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    elif kind == 'truncated':
        path.write_bytes(encode(picture('L'), 'PNG')[:-100])
    elif kind == 'damaged':
        whole = encode(picture('L'), 'PNG')
        path.write_bytes(whole[:1500] + bytes(100) + whole[1600:])


@pytest.mark.timeout(60)
@pytest.mark.parametrize('broken', ['missing', 'truncated', 'damaged', 'folder', 'pipe'])
@pytest.mark.parametrize('is_evaluation', [False, True])
def test_a_label_image_that_cannot_be_read(broken, is_evaluation, tmp_path):
    """Another sample takes its place in training; in evaluation, all pixels are ignored."""
    loading = pytest.importorskip('mmseg.datasets.transforms.loading')
    (tmp_path / 'a.jpg').write_bytes(encode(picture()))
    make(tmp_path / 'a.png', broken)
    info = dict(img_path=str(tmp_path / 'a.jpg'), seg_map_path=str(tmp_path / 'a.png'))
    steps = [t.LoadImageFromFile(), loading.LoadAnnotations()]
    load_image.check_steps(steps, is_evaluation)
    results = steps[1](steps[0](dict(info, seg_fields=[])))
    [note] = steps[1].notes
    assert note.path.endswith('a.jpg') and 'a.png' in note.reason
    assert note.outcome == 'skipped' and not steps[0].notes
    if is_evaluation:
        assert results['gt_seg_map'].shape == SIZE[::-1]
        assert (results['gt_seg_map'] == 255).all()
    else:
        assert results is None


@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind', ['missing', 'folder', 'pipe', 'device'])
def test_what_cannot_be_opened_is_skipped_and_a_pipe_not_read(kind, tmp_path):
    make(tmp_path / 'a.jpg', kind)
    reason = 'not a regular file' if kind in ('pipe', 'device') else 'cannot be'
    for color_type in ('color', 'unchanged'):
        results, [note] = load(tmp_path / 'a.jpg', step=t.LoadImageFromFile(color_type=color_type))
        assert results is None and reason in note.reason


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('colours', [False, True])
@pytest.mark.parametrize('largest, most', [(4095, 4095), (255, 255), (60000, None)])
def test_twelve_bits_in_sixteen(suffix, colours, largest, most, tmp_path):
    """They become 0 to 15 of 255: reported, and scaled where the largest value is given."""
    path = tmp_path / f'deep{suffix}'
    ramp = np.linspace(0, largest, 64 * 48).reshape(48, 64).astype(np.uint16)
    ramp[0, 0] = 65535  # a hot pixel makes no image bright
    assert cv2.imwrite(str(path), np.stack([ramp] * 3, -1) if colours else ramp)
    results, [note] = load(path)
    assert (f'image_max_value={most} ' if most else 'more than 8 bits') in note.reason
    assert ('nearly black' in note.reason) == (most is not None)
    assert np.abs(results['img'][..., 0] - ramp / 256.0).max() < 2
    results, [note] = load(path, max_value=largest)
    expected = np.round(np.minimum(ramp, largest) * (255 / largest)).astype(np.uint8)
    assert np.array_equal(results['img'], np.stack([expected] * 3, -1))
    assert note.reason == 'more than 8 bits'


def test_grey_is_loaded_where_it_is_asked_for(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(exif_rotated((48, 64)))
    (tmp_path / 'b.jpg').write_bytes(b'')
    step = t.LoadImageFromFile(color_type='grayscale')
    for name, known, shape in (
        ('a.jpg', dict(height=64, width=48), (64, 48)),
        ('a.jpg', {}, (48, 64)),
        ('b.jpg', dict(height=9, width=7), (9, 7)),
    ):
        results, _ = load(tmp_path / name, is_evaluation=True, step=step, known=known)
        assert results['img'].shape == shape


class LoadArray(t.LoadImageFromFile):
    """A loading step of somebody else, as LoadImageFromNpyFile of newer mmseg."""

    def transform(self, results):
        results['img'] = np.load(results['img_path'])
        return results


@pytest.mark.parametrize(
    'channels, model, expected',
    [
        (4, {}, ['data_preprocessor.mean: has 3 values', 'backbone.in_channels: is 3, but']),
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
    backbone = dict(type='CycleMLP', in_channels=settings['in_channels'])
    model = dict(backbone=backbone, data_preprocessor=dict(mean=settings['mean']))
    cfg, report = Config(dict(default_scope=settings['scope'], model=model)), Report()
    infos, loader = [dict(img_path=str(tmp_path / 'a.npy'))], LoadCheckedImage(LoadArray(), False)
    check_channels(report, cfg, check_images(report, cfg, infos, True, loader))
    found = [str(finding) for finding in report.of('error')]
    assert len(found) == len(expected), found
    assert all(f'loaded with {channels} channel' in text for text in found)
    assert all(part in text for part, text in zip(expected, found))


def test_other_loading_steps_skip_what_they_cannot_read(tmp_path):
    np.save(tmp_path / 'a.npy', np.ones((4, 6, 5), np.float32))
    (tmp_path / 'b.npy').write_bytes(b'no array')
    results, _ = load(tmp_path / 'a.npy', step=LoadArray(), known={})
    assert results['img'].shape == (4, 6, 5) and results['img'].dtype == np.float32
    assert as_picture(results['img']).shape == (4, 6, 3)
    results, [note] = load(tmp_path / 'b.npy', step=LoadArray())
    assert results is None and 'cannot be read by LoadArray' in note.reason
    with pytest.raises(UserError, match=r'b\.npy.*An evaluation needs all'):
        load(tmp_path / 'b.npy', is_evaluation=True, step=LoadArray())


@pytest.mark.parametrize(
    'orientation, size, said, level',
    [
        (3, SIZE, UNSURE_KIND, ['warning']),
        (2, SIZE, UNSURE_KIND, ['warning']),
        (6, (48, 48), UNSURE_KIND, ['warning']),
        (6, SIZE, 'EXIF rotation left out, as in the annotations', ['note']),
        (6, SIZE[::-1], 'EXIF rotation', ['note']),
        (1, SIZE, None, []),
    ],
)
def test_turns_that_keep_the_size_are_reported_as_such(orientation, size, said, level, tmp_path):
    exif, path = Image.Exif(), str(tmp_path / 'a.jpg')
    exif[0x0112] = orientation
    (tmp_path / 'a.jpg').write_bytes(encode(picture(size=size), exif=exif))
    known = KNOWN if said != UNSURE_KIND else dict(height=size[1], width=size[0])
    assert read_image(path, known)[1] == ([said] if said else [])
    assert read_image(path, {})[1] == ['EXIF rotation'] * (said is not None)  # not annotated
    report = Report()
    infos = [dict(known, img_path=path)]
    check_images(report, Config(), infos, True, LoadCheckedImage())
    assert [finding.level for finding in report.findings] == level


@pytest.mark.parametrize('workers', [0, 2])
def test_notes_travel_in_the_batch(workers, tmp_path):
    """Of all images that a worker process looked at, skipped ones too; the hook takes them out."""
    base = pytest.importorskip('mmengine.dataset')
    for name, content in (('a.jpg', b''), ('b.jpg', encode(picture('L')))):
        (tmp_path / name).write_bytes(content)

    class Data(base.BaseDataset):
        def load_data_list(self):
            return [dict(img_path=str(tmp_path / name)) for name in ('a.jpg', 'b.jpg')]

    data = Data(pipeline=[t.LoadImageFromFile()])
    loader = DataLoader(data, 2, num_workers=workers, collate_fn=base.pseudo_collate)
    for _ in range(2):  # as the hook does before each epoch
        load_image.check_loader(loader, False, None, 255)
    [batch] = loader
    noted = {(note.path[-5:], note.outcome) for note in batch.pop(notes.NOTES)}
    assert noted == {('a.jpg', 'skipped'), ('b.jpg', 'converted')}
    assert [image.shape for image in batch['img']] == [(48, 64, 3)] * 2


def test_a_collate_function_without_a_dict_gets_its_notes_logged(log_lines):
    step = notes.CheckedStep(None)
    step.notes.append(notes.ImageNote('a.jpg', 'converted', 'grey'))
    assert notes.CollateWithNotes(tuple, [step])([1, 2]) == (1, 2) and not step.notes
    assert any('image converted: a.jpg: grey' in line for line in log_lines)


def test_many_in_a_row_are_a_wrong_path():
    loader = LoadCheckedImage(t.LoadImageFromFile(), False)
    for _ in range(notes.MOST_IN_A_ROW - 1):
        assert loader(dict(img_path='nowhere/a.jpg')) is None
    with pytest.raises(UserError, match=f'{notes.MOST_IN_A_ROW} images in a row.*nowhere/a.jpg'):
        loader(dict(img_path='nowhere/a.jpg'))
