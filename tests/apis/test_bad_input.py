"""Data, configs, checkpoints and arguments as people get them wrong, through the tools.

Each ends before the first iteration with exit code 2 and a sentence that says what, where and how
to fix it; or it is a warning with a count. More faults of annotations and settings are in
tests/preflight, of images in tests/datasets/test_load_image.py.
"""

import json
import logging
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from bad_images import encode, picture
from paths import ROOT
from PIL import Image

from cyclemlp_mm.apis.check import check
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.apis.test import test as run_test
from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets.shapes import (
    write_ade20k,
    write_coco,
    write_image_folders,
    write_image_lists,
)

DET, SEG, CLS = 'retinanet_cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small', 'cyclemlp_demo'
MASKS = 'mask_rcnn_cyclemlp_b1_fpn_6e_small'
TRAIN_JSON = 'annotations/instances_train2017.json'
VAL_JSON = 'annotations/instances_val2017.json'

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp('originals')
    write_coco(folder / 'coco', 6, 2, (64, 48))
    write_ade20k(folder / 'ade', 4, 2, (64, 48))
    write_image_folders(folder / 'folders', 16, 16, (64, 64))
    write_image_lists(folder / 'lists', 16, 16, (64, 64))
    return folder


@pytest.fixture
def data(originals, tmp_path, monkeypatch):
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # A logger of an earlier test writes into that test's captured output, which is closed.
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    return tmp_path


def outcome_of(tool, argv, capsys):
    """(exit code, what was printed), as the tools end; hanging is a failure as well."""
    code = 0
    signal.alarm(120)
    try:
        run_tool(lambda: tool([str(part) for part in argv]))
    except SystemExit as end:
        code = end.code
    finally:
        signal.alarm(0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def edit(change, file=TRAIN_JSON):
    """A step that changes an annotation file."""

    def step(folder):
        path = folder / 'coco' / file
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return step


def each(change, number=None, file=TRAIN_JSON, key='annotations'):
    """A step that changes entries of an annotation file's list, all or the first few."""
    return edit(lambda content: [change(entry) for entry in content[key][:number]], file)


def long_image(folder):
    """Another image, of 20000 x 40 pixels, with a box."""
    Image.new('RGB', (20000, 40)).save(folder / 'coco/train2017/long.png')
    image = dict(id=99, file_name='long.png', width=20000, height=40)
    box = dict(id=999, image_id=99, category_id=1, bbox=[1, 1, 300, 30], area=9000)
    edit(lambda c: (c['images'].append(image), c['annotations'].append(box)))(folder)


def text(file, content):
    def step(folder):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)

    return step


def add_lines(lines):
    """A step that adds lines to a list of images."""

    def step(folder):
        with (folder / 'lists/train_list.txt').open('a') as file:
            file.write(lines)

    return step


def label(change):
    """A step that changes the first label image."""

    def step(folder):
        path = sorted(folder.glob('ade/annotations/training/*.png'))[0]
        content = change(np.asarray(Image.open(path)))
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)

    return step


def drop(pattern):
    def step(folder):
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return step


def rename(pattern, name):
    def step(folder):
        path = next(folder.glob(pattern))
        path.rename(path.with_name(name))

    return step


def folder(*names):
    return lambda root: [(root / name).mkdir() for name in names]


def save(file, content):
    return lambda folder: torch.save(content, folder / file)


def config(content, *bases):
    bases = [f'{ROOT}/configs/{base}.py' for base in bases]
    return text('c.py', f'_base_ = {bases}\n{content}')


def nothing(folder):
    pass


def cfg_options(*options):
    return ['--cfg-options', *options]


def own(root, ann_file):
    """Options for images of one's own, without --data."""
    return cfg_options(
        *(
            f'{phase}_dataloader.dataset.{setting}'
            for phase, split in (('train', 'train'), ('val', 'val'), ('test', 'val'))
            for setting in (
                f'data_root={root}',
                f'split={split}',
                f'ann_file={ann_file.format(split)}',
                'metainfo.classes=("a","b","c","d")',
            )
        )
    )


COCO, ADE, FOLDERS, LISTS = (['--data', name] for name in ('coco', 'ade', 'folders', 'lists'))
OWN_FOLDERS, OWN_LISTS = own('folders', ''), own('lists', '{}_list.txt')
ROOT_OPTION = 'train_dataloader.dataset.data_root=coco/'
CLASSES_OPTION = 'train_dataloader.dataset.metainfo.classes='
FSDP = '_base_/strategies/fsdp'
SAME_LABELS = """
steps = [dict(type='LoadAnnotations'), dict(type='CheckLabels', num_classes=5),
         dict(type='CheckLabels', num_classes=5, ignore_label=5)]
train_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root='ade', reduce_zero_label=True, pipeline=steps,
    metainfo=dict(classes=tuple('abcde'))))
"""

#: What is done to good data, arguments of tools/train.py, what is said.
ERRORS = [
    # Annotations of boxes.
    (text('coco/' + TRAIN_JSON, 'no json'), [DET, *COCO], r'train2017\.json is no JSON'),
    (
        edit(lambda c: c['categories'][0].update(name='cat')),
        [DET, *COCO],
        'of train and val differ',
    ),
    (
        each(lambda a: a.update(bbox=[1, 2]), 2),
        [DET, *COCO],
        r'2017\.json: 2 of \d+ boxes are malf',
    ),
    (each(lambda a: a.update(area=None), 1, VAL_JSON), [DET, *COCO], r'val2017\.json: .*"area" is'),
    (edit(lambda c: c['annotations'].clear(), VAL_JSON), [DET, *COCO], 'it has no boxes'),
    (each(lambda a: a.pop('segmentation')), [MASKS, *COCO], 'a mask head needs masks'),
    (each(lambda a: a.pop('segmentation'), 1), [MASKS, *COCO], '1 annotation have no "segmentat'),
    (each(lambda a: a.pop('segmentation'), None, VAL_JSON), [MASKS, *COCO], r'val2017\.json has b'),
    (drop('coco/train2017/*.jpg'), [DET, *COCO], '6 of 6 images are missing'),
    (
        lambda f: [p.write_bytes(b'') for p in sorted(f.glob('coco/train2017/*'))[:3]],
        [DET, *COCO],
        r'3 of 6 images looked at cannot be used.*is empty',
    ),
    (drop('coco/annotations'), [DET, *COCO], 'it lacks annotations/inst'),
    # Label images.
    (
        label(lambda a: np.where(a == 1, 77, a).astype(np.uint8)),
        [SEG, *ADE],
        r'labels 77 name no class; with 5 classes, labels 1 to 5 are the classes.*--ignore-label',
    ),
    (label(lambda a: np.stack([a] * 3, -1)), [SEG, *ADE], 'save label indices in one channel'),
    (label(lambda a: a.astype(np.uint16) + 300), [SEG, *ADE], r'labels up to 3\d\d; mmseg reads'),
    (label(lambda a: encode(picture('L'), 'PNG')[:500]), [SEG, *ADE], 'truncated'),
    (label(lambda a: a[:20]), [SEG, *ADE], 'is 64×20, but its image is 64×48'),
    (drop('ade/annotations/training/*1.png'), [SEG, *ADE], 'images in .* have no label'),
    (config(SAME_LABELS, SEG), ['c.py'], 'CheckLabels stands in it 2 times.*=None, then .*=5'),
    (drop('ade/classes.txt'), [SEG, *ADE], 'classes.txt is missing'),
    (text('ade/classes.txt', 'a\nb\nc\n'), [SEG, *ADE], 'labels 4, 5 name no class'),
    (text('ade/classes.txt', 'a\na\nb\nc\nd\n'), [SEG, *ADE], 'class names are double'),
    (rename('ade/images/training/*', 'x.jpeg'), [SEG, *ADE], r'mixes \.jpeg, \.jpg'),
    # Images by class.
    (rename('folders/val/*', 'zebra'), [CLS, *FOLDERS], 'folders of train and val differ.*zebra'),
    (folder('folders/train/.ipynb_checkpoints'), [CLS, *FOLDERS], 'every folder for a .*ipynb_ch'),
    (folder('folders/val/__MACOSX'), [CLS, *FOLDERS], 'for a class, val/__MACOSX as well'),
    (folder('folders/val/.git'), [CLS, *OWN_FOLDERS], r'folders/val: .*every folder for a .*\.git'),
    (folder('folders/val/zebra'), [CLS, *OWN_FOLDERS], 'folders/val: has 5 class folders.*names 4'),
    (
        add_lines('gone1.jpg 0\ngone2.jpg 0\ngone3.jpg 1\n'),
        [CLS, *LISTS],
        r'train_list\.txt: 3 of 19 images are not in .*train: gone1\.jpg, gone2',
    ),
    (add_lines('a.jpg 7\n'), [CLS, *OWN_LISTS], 'labels 7 name no class; .* labels are 0 to 3'),
    (add_lines('a.jpg\n'), [CLS, *OWN_LISTS], r"1 of 17 lines are no .*line 17 'a\.jpg'"),
    (drop('folders/val'), [CLS, *FOLDERS], 'lacks val/'),
    # Configs.
    (text('c.py', 'model = {'), ['c.py', *COCO], r'config c\.py cannot be read: SyntaxError'),
    (text('c.py', "_base_ = 'gone.py'"), ['c.py'], r'c\.py cannot be read: FileNotFoundError'),
    (
        config("custom_imports = dict(imports=['gone_module'])", DET),
        ['c.py', *COCO],
        r'c\.py cannot be read: .*gone_module',
    ),
    (text('c.py', 'model = dict()'), ['c.py'], 'default_scope=None'),
    (
        nothing,
        [
            DET,
            *cfg_options(
                ROOT_OPTION,
                'val_dataloader.dataset.data_root=coco/',
                f'{CLASSES_OPTION}("circle","square")',
            ),
        ],
        r'bbox_head\.num_classes: is 4, but the data set has 2 classes',
    ),
    (
        nothing,
        [DET, *cfg_options(ROOT_OPTION, f'{CLASSES_OPTION}("cat","dog")')],
        r'2 class names of the config are not in the file: cat, dog \(it has',
    ),
    (nothing, [DET], r'data/coco.*there is no such'),
    (
        nothing,
        ['cyclemlp_b1_in1k', *cfg_options('model.head.num_classes=4', f'{CLASSES_OPTION}"abcd"')],
        'metainfo.classes: is the text .abcd., neither a tuple of names nor a file.*Write a comma',
    ),
    (
        nothing,
        [
            'cyclemlp_b1_in1k',
            *cfg_options('model.head.num_classes=4', f'{CLASSES_OPTION}("a","b","c","d")'),
        ],
        r'val_evaluator\.topk: is .1, 5., but the data set has 4 classes',
    ),
    (
        config("strategy = dict(type='FSDPStrategy')", DET, FSDP),
        ['c.py', *COCO],
        'strategy: FSDPStrategy .*(PyTorch sees none|this is one alone)',
    ),
    (
        config("custom_hooks = [dict(type='EMAHook')]", DET, FSDP),
        ['c.py', *COCO],
        r'ShardedStrategy shards .* this is one alone.*tools/dist_train\.sh.*EMAHook copies',
    ),
    # Arguments and settings.
    (nothing, [DET, *COCO, *cfg_options('resume')], 'resume.* KEY=VALUE'),
    (text('wd2', ''), [DET, *COCO, '--work-dir', 'wd2'], r'wd2.*cannot be written'),
    *(
        (nothing, [DET, *COCO, *cfg_options(option)], expected)
        for option, expected in {
            'train_cfg.max_epochs.x=1': '--cfg-options .* does not fit',
            'max_bad_fraction=-1': r'must be a number in \[0, 1\]',
            'model.backbone.type=CycleMPL': r'model: .*cannot be built \(KeyError.*CycleMPL',
            'model.backbone.archh=b1': 'model: .*cannot be built .*archh',
            'train_dataloader.batchsize=2': 'train_dataloader.batchsize: .*Did you mean batch_size',
            'custom_hooks=3': 'custom_hooks is 3, but must be a list of settings',
        }.items()
    ),
    # Checkpoints.
    (nothing, [DET, *COCO, '--resume', 'gone.pth'], 'does not exist'),
    (nothing, [DET, *COCO, '--resume', 'coco'], 'is not a file'),
    (
        lambda f: (f / 'h.pth').write_bytes(b'PK\x03\x04' + bytes(99)),
        [DET, *COCO, '--resume', 'h.pth'],
        'cannot be read .*truncated, damaged',
    ),
    (
        save('w.pth', {'state_dict': {'a': torch.ones(1)}}),
        [DET, *COCO, '--resume', 'w.pth'],
        'does not fit|cannot be resumed',
    ),
    (
        text('wd/epoch_3.pth', 'broken'),
        [DET, *COCO, '--resume'],
        'none of the 1 checkpoints in wd can be read; .*epoch_3',
    ),
    (
        save('w.pth', {'a': torch.ones(1)}),
        [DET, *COCO, *cfg_options('load_from=w.pth')],
        'does not fit the model',
    ),
]

#: What is done to good data, arguments of tools/check.py, the warning.
WARNINGS = [
    (each(lambda a: a.update(bbox=[1, 1, 0, 5]), 2), [DET, *COCO], r'2 of \d+ boxes have no area'),
    (
        each(lambda a: a.update(segmentation=[[1, 2, 3, 4]]), 1),
        [MASKS, *COCO],
        '1 annotation have no polygon of at least three points',
    ),
    (drop('coco/train2017/*1.jpg'), [DET, *COCO], r'1 of 6 images are missing: 0+1\.jpg'),
    (
        lambda f: (f / 'coco/train2017/000000000001.jpg').write_bytes(encode(picture())[:-300]),
        [DET, *COCO],
        '1 of 6 images looked at cannot be used',
    ),
    (long_image, [DET, *COCO], r'1 of 7 .* cannot be used: long\.png is too long \(20000×40\)'),
    (drop('folders/train/circle/*'), [CLS, *FOLDERS], 'no image of 1 class: circle'),
    (add_lines('gone1.jpg 0\n'), [CLS, *LISTS], r'1 of 17 images are not in .*train: gone1\.jpg'),
    (
        nothing,
        [DET, *COCO, '--classes', 'circle', 'square'],
        r'not trained, as the config does not name them: \w+ \(\d+ box',
    ),
    (
        nothing,
        [DET, *COCO, *cfg_options('train_dataloader.batch_size=2')],
        'the batch is 2, but the learning rate was chosen for 8',
    ),
]


@pytest.mark.parametrize('prepare, argv, expected', ERRORS)
def test_training_stops_before_it_begins(prepare, argv, expected, data, capsys):
    prepare(data)
    work_dir = [] if '--work-dir' in argv else ['--work-dir', 'wd']
    code, printed = outcome_of(train, [argv[0], *work_dir, *argv[1:]], capsys)
    assert code == 2, printed
    assert re.search(expected, printed, re.DOTALL), printed
    assert re.search(r'^(error: |.*: error: )', printed, re.MULTILINE), printed
    assert 'Traceback' not in printed and 'Epoch(train)' not in printed


@pytest.mark.parametrize('prepare, argv, expected', WARNINGS)
def test_the_check_warns_with_a_count(prepare, argv, expected, data, capsys):
    prepare(data)
    code, printed = outcome_of(check, [*argv, '--full'], capsys)
    assert code == 0, printed
    assert re.search(rf'^warning: .*{expected}', printed, re.MULTILINE), printed


def _masks_of_another_size(folder):
    for file in (folder / 'ade/annotations/validation').iterdir():
        Image.new('L', (10, 10)).save(file)


def backslash(image):
    image['file_name'] = 'x\\' + image['file_name']


@pytest.mark.parametrize(
    'prepare, argv, expected',
    [
        (
            each(lambda a: a['bbox'].__setitem__(slice(2, 4), [60, 44]), file=VAL_JSON),
            [DET, *COCO],
            'warning: .*val2017.json: .* reach beyond the image',
        ),
        (
            each(lambda a: a.update(area=1.0), file=VAL_JSON),
            [MASKS, *COCO],
            'warning: .*val2017.json: the "area" of',
        ),
        (drop(f'coco/{TRAIN_JSON}'), [DET, *COCO], 'holds no state dict'),  # val is enough
        (
            each(lambda a: a.update(bbox=[0.1, 0.1, 0.2, 0.2]), file=VAL_JSON),
            [DET, *COCO],
            'error: .*val2017.json: all boxes are made of numbers from 0 to 1',
        ),
        (
            each(backslash, file=VAL_JSON, key='images'),
            [MASKS, *COCO],
            'error: .*val2017: 2 of 2 images are missing: .*in another folder',
        ),
        (_masks_of_another_size, [SEG, *ADE], 'error: .*annotations/validation'),
        (drop('folders/val/circle'), [CLS, *OWN_FOLDERS], 'error: .*class folder'),
    ],
)
def test_an_evaluation_looks_at_its_data_as_well(prepare, argv, expected, data, capsys):
    """Figures of wrong annotations are wrong, and no training has looked at them."""
    prepare(data)
    torch.save(dict(state_dict={}), 'c.pth')
    code, printed = outcome_of(run_test, [argv[0], 'c.pth', '--work-dir', 'wd', *argv[1:]], capsys)
    assert code == 2 and 'Traceback' not in printed, printed
    assert re.search(expected, printed, re.DOTALL), printed


@pytest.mark.usefixtures('data')
@pytest.mark.parametrize(
    'argv',
    [
        [DET, *COCO],
        [MASKS, *COCO],
        [SEG, *ADE],
        [CLS, *FOLDERS],
        [CLS, *LISTS],
        [CLS, *OWN_FOLDERS],
        [CLS, *OWN_LISTS],
    ],
)
def test_good_data_have_nothing_to_say(argv, capsys):
    code, printed = outcome_of(check, [*argv, '--full'], capsys)
    assert code == 0 and '0 errors' in printed, printed
    assert not re.search(r'^warning: (?!train_dataloader.batch_size)', printed, re.MULTILINE)


def test_what_nobody_thought_of_comes_with_a_sentence_in_front(capsys):
    def tool():
        raise ZeroDivisionError('deep inside')

    with pytest.raises(ZeroDivisionError):
        run_tool(tool)
    assert 'error: unexpected ZeroDivisionError: deep inside' in capsys.readouterr().err
