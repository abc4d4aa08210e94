"""What the check says about label images, read as the pipeline of their data set reads them."""

import os
import re

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from PIL import Image

from cyclemlp_mm.preflight.findings import ERROR, NOTE, WARNING, Report
from cyclemlp_mm.preflight.segmentation import check_segmentation

pytest.importorskip('mmseg')

ZERO_IGNORED = dict(reduce_zero_label=True)
ZERO_COUNTS = dict(reduce_zero_label=False)


@pytest.fixture(autouse=True)
def _mmseg():
    init_default_scope('mmseg')


def write(folder, labels, suffix='.png'):
    """Two data folders; ``labels`` are arrays, or functions that write a file."""
    for name in ('images', 'labels'):
        (folder / name).mkdir(exist_ok=True)
    for i, label in enumerate(labels):
        path = folder / 'labels' / f'{i}{suffix}'
        if callable(label):
            label(path)
        else:
            Image.fromarray(label).save(path)
        Image.new('RGB', (8, 8), (9, 9, 9)).save(folder / 'images' / f'{i}.jpg')


def look(
    folder, classes=('a', 'b'), full=False, split='train', ignore_label=None, cfg=(), **settings
):
    """Findings of the check, as (level, text)."""
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    if ignore_label is not None:
        steps.append(dict(type='CheckLabels', num_classes=len(classes), ignore_label=ignore_label))
    settings = dict(
        dict(type='BaseSegDataset', pipeline=steps, metainfo=dict(classes=classes)), **settings
    )
    dataset = ConfigDict(
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        **settings,
    )
    report = Report()
    cfg = Config(dict(dict(model={}), **dict(cfg)))
    check_segmentation(report, cfg, split, dataset, classes, full)
    return [(finding.level, str(finding)) for finding in report.findings]


def squares(*values):
    """8×8 pixels, in as many equal columns as there are values."""
    return np.repeat(np.array([values], np.uint8), 8, 0).repeat(8 // len(values), 1)


#: name: (labels, arguments of ``look``, the level that is expected, its text).
CASES = {
    'ignored, with a hint': (
        [squares(0, 0, 1, 2)],
        ZERO_IGNORED,
        WARNING,
        r'ignored: 50\.0% of the pixels looked at\. If 0.*--ignore-label$',
    ),
    'ignored by the option': (
        [squares(0, 1, 1, 2)],
        dict(ZERO_COUNTS, ignore_label=2),
        WARNING,
        r'ignored: 25\.0% of',
    ),
    'little is ignored': (
        [np.where(np.arange(64).reshape(8, 8) < 4, 255, squares(0, 1)).astype(np.uint8)],
        ZERO_COUNTS,
        None,
        '',
    ),
    'a class without a pixel': (
        [squares(0, 1)],
        dict(ZERO_COUNTS, classes=('a', 'b', 'c')),
        WARNING,
        r'no pixel of 1 class in the 1 label image looked at: c',
    ),
    'counted from 0': (
        [squares(0, 1)],
        dict(ZERO_IGNORED, classes=('background', 'lesion')),
        WARNING,
        r"last class \('lesion'\).*first class is named 'background'.*from 0.*--ignore-label",
    ),
    'counted from 0, more classes': (
        [squares(0, 1, 2, 2)],
        dict(ZERO_IGNORED, classes=('bg', 'cat', 'dog')),
        WARNING,
        "'dog'.*do labels count from 0",
    ),
    'counted from 1': (
        [squares(1, 2)],
        ZERO_COUNTS,
        ERROR,
        'labels 2 name no class.*seem to count from 1',
    ),
    'masks of 0 and 255': (
        [squares(0, 255)],
        ZERO_COUNTS,
        ERROR,
        '0 and 255 only, and 255 is ignored: b would never',
    ),
    'masks of 0 and 255, ignoring 2': (
        [squares(0, 255)],
        dict(ZERO_COUNTS, ignore_label=2),
        ERROR,
        '0 and 255 only',
    ),
    'masks of 0 and 255, 0 ignored': (
        [squares(0, 255)],
        ZERO_IGNORED,
        ERROR,
        '0 and 255 only, and both are ignored',
    ),
    'masks of 0 and 255 to evaluate, 0 ignored': (
        [squares(0, 255)],
        dict(ZERO_IGNORED, split='val'),
        ERROR,
        'Write class indices',
    ),
    'nothing but an ignored label': (
        [squares(0)],
        ZERO_IGNORED,
        ERROR,
        'no pixel of any class: labels 1 to 2 are the classes, '
        r'0 and 255 are ignored \(.*\); labels found: 0',
    ),
    'masks of 0 and 255 to evaluate': (
        [squares(0, 255)],
        dict(ZERO_COUNTS, split='val'),
        WARNING,
        '0 and 255 only',
    ),
    'one image of 100 has the object': (
        [squares(0, 255)] * 99 + [squares(0, 1)],
        ZERO_COUNTS,
        WARNING,
        'ignored: 49',
    ),
    'a label_map': (
        [squares(0, 1, 13, 255)],
        dict(
            type='CityscapesDataset',
            classes=('car', 'road'),
            img_suffix='.jpg',
            seg_map_suffix='.png',
        ),
        WARNING,
        r'2 of the data set.s 19 classes are in use .*ignored: 25\.0%',
    ),
    'a stray label beside a label_map': (
        [squares(0, 13, 25, 25)],
        dict(
            type='CityscapesDataset',
            classes=('car', 'road'),
            img_suffix='.jpg',
            seg_map_suffix='.png',
        ),
        ERROR,
        'labels 25 name no class',
    ),
    'an own ignore_index of the head': (
        [squares(0, 1, 11, 11)],
        dict(ZERO_COUNTS, cfg=dict(model=dict(decode_head=dict(ignore_index=11)))),
        WARNING,
        r'labels 0 to 1 are the classes, 11 is ignored.*50\.0%',
    ),
    '255 beside an own ignore_index': (
        [squares(0, 1, 11, 255)],
        dict(ZERO_COUNTS, cfg=dict(model=dict(decode_head=dict(ignore_index=11)))),
        ERROR,
        'labels 255 name no class',
    ),
    'an ignore_index that the metric does not have': (
        [squares(0, 1, 11, 11)],
        dict(
            ZERO_COUNTS,
            split='val',
            cfg=dict(
                model=dict(decode_head=dict(ignore_index=11)), val_evaluator=dict(type='IoUMetric')
            ),
        ),
        ERROR,
        'labels 11 name no class',
    ),
    'an own ignore_index of the metric': (
        [squares(0, 1, 11, 11)],
        dict(
            ZERO_COUNTS,
            split='val',
            cfg=dict(val_evaluator=[dict(type='IoUMetric', ignore_index=11)]),
        ),
        WARNING,
        '11 is ignored',
    ),
    'two settings of one thing': (
        [squares(1, 2)],
        dict(
            ZERO_COUNTS,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', reduce_zero_label=True),
            ],
        ),
        ERROR,
        'LoadAnnotations has reduce_zero_label=True, but the data set False',
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_what_is_said(case, tmp_path):
    labels, settings, level, said = CASES[case]
    write(tmp_path, labels)
    found = look(tmp_path, **settings)
    if level is None:
        assert [level for level, _ in found] in ([NOTE], [NOTE, NOTE]), found
    else:
        assert any(is_level == level and re.search(said, text) for is_level, text in found), found


def test_palettes_that_differ(tmp_path):
    def save(order):
        def to(path):
            image = Image.fromarray(squares(0, 1))
            image.putpalette([10, 10, 10, 90, 0, 0] if order else [90, 0, 0, 10, 10, 10])
            image.save(path)

        return to

    write(tmp_path, [save(True), save(True)])
    assert not any('palettes of' in text for _, text in look(tmp_path))
    write(tmp_path, [save(True), save(False)])
    assert any(
        level == WARNING and 'palettes of label images differ: 0 is' in text
        for level, text in look(tmp_path)
    )


def test_the_list_of_a_data_set_decides(tmp_path):
    """As VOC's ImageSets: other images of the folder need no label."""
    write(tmp_path, [squares(0, 1)] * 2)
    Image.new('RGB', (8, 8)).save(tmp_path / 'images' / 'other.jpg')
    assert any('1 of 3 images have no label image' in text for _, text in look(tmp_path))
    (tmp_path / 'train.txt').write_text('0\n1\n')
    assert [level for level, _ in look(tmp_path, ann_file='train.txt')] == [NOTE]
    (tmp_path / 'train.txt').write_text('0\n1\ngone\nGONE\nlost\n')
    assert any(
        level == ERROR and '3 of 5 images are missing: gone.jpg' in text
        for level, text in look(tmp_path, ann_file='train.txt')
    )
    for encoding, said in (
        ('utf-8-sig', 'byte-order mark'),
        ('utf-16', 'byte-order mark'),
        ('cp1252', 'not in UTF-8'),
    ):
        (tmp_path / 'train.txt').write_bytes('0\nstraße\n'.encode(encoding))
        [(level, text)] = look(tmp_path, ann_file='train.txt')
        assert level == ERROR and said in text and 'UTF-8' in text


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
    assert [level for level, _ in look(tmp_path, **settings)] == [NOTE]
    np.save(tmp_path / 'labels' / '1.npy', squares(0, 7))
    assert any(
        level == ERROR and 'labels 7 name no class' in text
        for level, text in look(tmp_path, **settings)
    )


def test_names_in_another_spelling(tmp_path):
    write(tmp_path, [squares(0, 1)] * 2)
    for name, other, cause in (('é', 'e\u0301', 'NFC'), ('a b', 'a%20b', 'URL')):
        os.rename(tmp_path / 'images' / '1.jpg', tmp_path / 'images' / f'{name}.jpg')
        os.rename(tmp_path / 'labels' / '1.png', tmp_path / 'labels' / f'{other}.png')
        assert any(
            level == ERROR and 'another spelling' in text and cause in text
            for level, text in look(tmp_path)
        )
        os.rename(tmp_path / 'images' / f'{name}.jpg', tmp_path / 'images' / '1.jpg')
        os.rename(tmp_path / 'labels' / f'{other}.png', tmp_path / 'labels' / '1.png')


def test_images_that_are_passed_over(tmp_path):
    write(tmp_path, [squares(0, 1)] * 2)
    Image.new('RGB', (8, 8)).save(tmp_path / 'images' / 'b.webp')
    (tmp_path / 'images' / '._0.jpg').write_bytes(bytes(99))  # of a Mac
    found = look(tmp_path)
    assert [level for level, _ in found] == [WARNING, NOTE]
    assert '1 file passed over' in found[0][1] and 'b.webp' in found[0][1]


@pytest.mark.timeout(60)
def test_a_pipe_does_not_hang(tmp_path):
    write(tmp_path, [squares(0, 1)] * 2)
    (tmp_path / 'labels' / '1.png').unlink()
    os.mkfifo(tmp_path / 'labels' / '1.png')
    assert any(
        level == ERROR and '1.png cannot be read (is not a regular file' in text
        for level, text in look(tmp_path)
    )
    (tmp_path / 'labels' / '1.png').unlink()
    os.symlink('/dev/zero', tmp_path / 'labels' / '1.png')
    assert any('not a regular file' in text for _, text in look(tmp_path))
