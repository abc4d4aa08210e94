"""What the check says about label images, read as the pipeline of their data set reads them."""

import os
import re

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from PIL import Image

from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.run import check_dataset

pytest.importorskip('mmseg')


def write(folder, labels):
    """Two data folders, with images of 8×8 pixels."""
    for name in ('images', 'labels'):
        (folder / name).mkdir(exist_ok=True)
    for i, label in enumerate(labels):
        label = label if isinstance(label, Image.Image) else Image.fromarray(label)
        label.save(folder / 'labels' / f'{i}.png')
        Image.new('RGB', (8, 8), (9, 9, 9)).save(folder / 'images' / f'{i}.jpg')


def look(folder, classes='ab', split='train', ignore_label=None, cfg=(), **settings):
    """Findings of the check, as texts."""
    init_default_scope('mmseg')
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    if ignore_label is not None:
        steps.append(dict(type='CheckLabels', num_classes=len(classes), ignore_label=ignore_label))
    classes, prefix = tuple(classes), dict(img_path='images', seg_map_path='labels')
    dataset = dict(type='BaseSegDataset', pipeline=steps, metainfo=dict(classes=classes))
    dataset.update(data_root=str(folder), data_prefix=prefix, **settings)
    report = Report()
    cfg = Config(dict(dict(model={}, default_scope='mmseg'), **dict(cfg)))
    check_dataset(report, cfg, split, ConfigDict(dataset), classes, False)
    return list(map(str, report.findings))


def squares(*values):
    """8×8 pixels, in as many equal columns as there are values."""
    return np.repeat(np.array([values], np.uint8), 8, 0).repeat(8 // len(values), 1)


def with_palette(*colours):
    image = Image.fromarray(squares(0, 1))
    image.putpalette([value for colour in colours for value in colour])
    return image


def from_1(*values, **settings):
    return [squares(*values)], dict(reduce_zero_label=True, **settings)


def from_0(*values, **settings):
    return [squares(*values)], dict(reduce_zero_label=False, **settings)


def mapped(*values):
    suffixes = dict(img_suffix='.jpg', seg_map_suffix='.png')
    return [squares(*values)], dict(type='CityscapesDataset', classes=('car', 'road'), **suffixes)


TWICE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
HEAD_11 = dict(model=dict(decode_head=dict(ignore_index=11)))
METRIC_11 = dict(val_evaluator=[dict(type='IoUMetric', ignore_index=11)])
FEW_IGNORED = np.where(np.arange(64).reshape(8, 8) < 4, 255, squares(0, 1)).astype(np.uint8)
#: (labels, arguments of ``look``), and what is expected.
CASES = [
    (from_1(0, 0, 1, 2), r'warning: .*ignored: 50\.0% of the pixels .*If 0.*--ignore-label$'),
    (from_0(0, 1, 1, 2, ignore_label=2), r'warning: .*ignored: 25\.0% of'),
    (([FEW_IGNORED], dict(reduce_zero_label=False)), None),
    (from_0(0, 1, classes='abc'), 'warning: .*no pixel of c in the 1 label image'),
    (
        from_1(0, 1, classes=('background', 'lesion')),
        r"warning: .*last class \('lesion'\).*from 0.*first class is named 'background'.*--ig",
    ),
    (from_1(0, 1, 2, 2, classes=('bg', 'cat', 'dog')), "warning: .*'dog'.*do labels count from 0"),
    (from_0(1, 2), 'error: .*labels 2 name no class.*seem to count from 1'),
    # Masks of 0 and 255.
    (from_0(0, 255), 'error: .*0 and 255 only, and 255 is ignored: b would never'),
    (from_0(0, 255, ignore_label=2), 'error: .*0 and 255 only'),
    (from_1(0, 255), 'error: .*0 and 255 only, and both are ignored'),
    (from_1(0, 255, split='val'), 'error: .*Write class indices'),
    (from_0(0, 255, split='val'), 'warning: .*0 and 255 only'),
    (
        ([squares(0, 255)] * 99 + [squares(0, 1)], dict(reduce_zero_label=False)),
        'warning: .*ignored: 49',
    ),
    (from_1(0), r'error: .*no pixel of any class: labels 1 to 2 .*, 0 and 255 are ign.*found: 0'),
    # Labels that are numbered again, and other labels to ignore.
    (mapped(0, 1, 13, 255), r'warning: .*2 of the data set.s 19 classes .*ignored: 25\.0%'),
    (mapped(0, 13, 25, 25), 'error: .*labels 25 name no class'),
    (from_0(0, 1, 11, 11, cfg=HEAD_11), r'warning: .*labels 0 to 1 .*, 11 is ignored.*50\.0%'),
    (from_0(0, 1, 11, 255, cfg=HEAD_11), 'error: .*labels 255 name no class'),
    (
        from_0(0, 1, 11, 11, split='val', cfg=dict(HEAD_11, val_evaluator=dict(type='IoUMetric'))),
        'error: .*labels 11 name no class',
    ),
    (from_0(0, 1, 11, 11, split='val', cfg=METRIC_11), 'warning: .*11 is ignored'),
    (from_0(1, 2, pipeline=TWICE), 'error: .*reduce_zero_label=True, but the data set False'),
    # Palettes.
    (([with_palette((9, 9, 9), (90, 0, 0))] * 2, {}), None),
    (
        ([with_palette((9, 9, 9), (90, 0, 0)), with_palette((90, 0, 0), (9, 9, 9))], {}),
        'warning: .*palettes of label images differ: 0 is',
    ),
]


@pytest.mark.few(12)
@pytest.mark.parametrize('data, expected', CASES)
def test_what_is_found(data, expected, tmp_path):
    labels, settings = data
    write(tmp_path, labels)
    found = look(tmp_path, **settings)
    if expected is None:
        assert found and all(text.startswith('note') for text in found), found
    else:
        assert any(re.match(expected, text) for text in found), found


def has(folder, pattern, **settings):
    """Whether a finding begins as a pattern."""
    return any(re.match(pattern, text) for text in look(folder, **settings))


def levels(folder, **settings):
    return [text.split(':')[0] for text in look(folder, **settings)]


def test_the_list_of_a_data_set_decides(tmp_path):
    """As VOC's ImageSets: other images of the folder need no label."""
    write(tmp_path, [squares(0, 1)] * 2)
    Image.new('RGB', (8, 8)).save(tmp_path / 'images' / 'other.jpg')
    assert has(tmp_path, 'error: .*1 of 3 images have no label image')
    (tmp_path / 'train.txt').write_text('0\n1\n')
    assert levels(tmp_path, ann_file='train.txt') == ['note']
    (tmp_path / 'train.txt').write_text('0\n1\ngone\nGONE\nlost\n')
    assert has(tmp_path, r'error: .*3 of 5 images are missing: gone\.jpg', ann_file='train.txt')
    for encoding in ('utf-8-sig', 'utf-16', 'cp1252'):
        (tmp_path / 'train.txt').write_bytes('0\nstraße\n'.encode(encoding))
        assert has(tmp_path, r'error: .*train\.txt: .*UTF-8', ann_file='train.txt')


def test_other_loading_steps(tmp_path):
    """Bands in .npy files, labels in .npy files by a step of the user's own."""
    from mmseg.datasets.transforms import loading
    from mmseg.registry import TRANSFORMS

    if not hasattr(loading, 'LoadImageFromNpyFile'):
        pytest.skip('this mmseg has no LoadImageFromNpyFile')

    class LoadLabelsOfNpy:
        def __call__(self, results):
            results['gt_seg_map'] = np.load(results['seg_map_path'])
            results['seg_fields'].append('gt_seg_map')
            return results

    TRANSFORMS.register_module(module=LoadLabelsOfNpy, force=True)
    write(tmp_path, [])
    for i in range(2):
        np.save(tmp_path / 'images' / f'{i}.npy', np.zeros((8, 8, 4), np.float32))
        np.save(tmp_path / 'labels' / f'{i}.npy', squares(0, 1, 1, i))
    steps = [dict(type='LoadImageFromNpyFile'), dict(type='LoadLabelsOfNpy')]
    settings = dict(pipeline=steps, img_suffix='.npy', seg_map_suffix='.npy')
    assert levels(tmp_path, **settings) == ['note']
    np.save(tmp_path / 'labels' / '1.npy', squares(0, 7))
    assert has(tmp_path, 'error: .*labels 7 name no class', **settings)


@pytest.mark.parametrize('name, other, cause', [('é', 'e\u0301', 'NFC'), ('a b', 'a%20b', 'URL')])
def test_names_in_another_spelling(name, other, cause, tmp_path):
    write(tmp_path, [squares(0, 1)] * 2)
    os.rename(tmp_path / 'images' / '1.jpg', tmp_path / 'images' / f'{name}.jpg')
    os.rename(tmp_path / 'labels' / '1.png', tmp_path / 'labels' / f'{other}.png')
    assert has(tmp_path, f'error: .*another spelling.*{cause}')


def test_images_that_are_passed_over(tmp_path):
    write(tmp_path, [squares(0, 1)] * 2)
    Image.new('RGB', (8, 8)).save(tmp_path / 'images' / 'b.webp')
    (tmp_path / 'images' / '._0.jpg').write_bytes(bytes(99))  # of a Mac
    assert levels(tmp_path) == ['warning', 'note']
    assert has(tmp_path, r'warning: .*1 image file passed over.*b\.webp')


@pytest.mark.timeout(60)
@pytest.mark.parametrize('make', [os.mkfifo, lambda path: os.symlink('/dev/zero', path)])
def test_a_pipe_does_not_hang(make, tmp_path):
    write(tmp_path, [squares(0, 1)] * 2)
    (tmp_path / 'labels' / '1.png').unlink()
    make(tmp_path / 'labels' / '1.png')
    assert has(tmp_path, r'error: .*1\.png is not a regular file')
