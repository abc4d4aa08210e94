"""Data, configs, checkpoints and arguments as people get them wrong, through the tools.

Each ends before the first iteration with exit code 2 and a sentence that says what, where and how
to fix it; or it is a warning with a count. Here is one of each kind; all faults of annotations,
labels and settings are in tests/preflight, of images in tests/datasets/test_load_image.py.
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
from cyclemlp_mm.datasets import shapes

DET, SEG = 'retinanet_cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small'
TRAIN_JSON = 'annotations/instances_train2017.json'
VAL_JSON = 'annotations/instances_val2017.json'
# Command lines.
COCO, ADE = f'{DET} --data coco', f'{SEG} --data ade'
MASKS = 'mask_rcnn_cyclemlp_b1_fpn_6e_small --data coco'
FOLDERS, LISTS = (f'cyclemlp_demo --data {name}' for name in ('folders', 'lists'))
IN1K = 'cyclemlp_b1_in1k --cfg-options model.head.num_classes=4'
CLASSES = 'train_dataloader.dataset.metainfo.classes='
CHOSEN = f'{DET} --cfg-options train_dataloader.dataset.data_root=coco/ {CLASSES}'


def own(root, ann_file):
    """Images of one's own, without --data."""
    settings = [f'data_root={root}', 'metainfo.classes=("a","b","c","d")']
    options = [
        f'{phase}_dataloader.dataset.{setting}'
        for phase, split in (('train', 'train'), ('val', 'val'), ('test', 'val'))
        for setting in (*settings, f'split={split}', f'ann_file={ann_file.format(split)}')
    ]
    return ' '.join(['cyclemlp_demo --cfg-options', *options])


OWN_FOLDERS, OWN_LISTS = own('folders', ''), own('lists', '{}_list.txt')

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp('originals')
    shapes.write_coco(folder / 'coco', 6, 2, (64, 48))
    shapes.write_ade20k(folder / 'ade', 4, 2, (64, 48))
    shapes.write_image_folders(folder / 'folders', 16, 16, (64, 64))
    shapes.write_image_lists(folder / 'lists', 16, 16, (64, 64))
    return folder


@pytest.fixture
def data(originals, tmp_path, monkeypatch):
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # A logger of an earlier test writes into that test's captured output, which is closed.
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    return tmp_path


def outcome_of(tool, line, capsys):
    """(exit code, what was printed), as the tools end; hanging is a failure as well."""
    code = 0
    signal.alarm(120)
    try:
        run_tool(lambda: tool(line.split()))
    except SystemExit as end:
        code = end.code
    finally:
        signal.alarm(0)
    printed = ''.join(capsys.readouterr())
    assert 'Traceback' not in printed and 'Epoch(train)' not in printed
    return code, printed


# Steps that change good data, in the current folder.
def edit(change, file=TRAIN_JSON):
    def step(folder):
        path = folder / 'coco' / file
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return step


def update(number=None, file=TRAIN_JSON, **fields):
    """All boxes of an annotation file, or the first few."""
    return edit(lambda c: [box.update(fields) for box in c['annotations'][:number]], file)


def no_masks(content):
    for annotation in content['annotations']:
        del annotation['segmentation']


def text(file, content):
    def step(folder):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)

    return step


def lines(more):
    """More lines of a list of images."""
    file = 'lists/train_list.txt'
    return lambda folder: text(file, (folder / file).read_text() + more)(folder)


def label(change):
    """The first label image."""

    def step(folder):
        path = min(folder.glob('ade/annotations/training/*.png'))
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)

    return step


def small_labels(folder):
    for file in (folder / 'ade/annotations/validation').iterdir():
        Image.new('L', (10, 10)).save(file)


def drop(pattern):
    def step(folder):
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return step


def cut(pattern, number, end):
    return lambda folder: [
        path.write_bytes(encode(picture())[:end]) for path in sorted(folder.glob(pattern))[:number]
    ]


def twice(folder):
    """The first image of a list again, with another label."""
    file = folder / 'lists/train_list.txt'
    name = file.read_text().split(' ')[0]
    file.write_text(file.read_text().rstrip('\n') + f'\n{name} 3\n')


def mkdir(name):
    return lambda folder: (folder / name).mkdir()


def save(file, content):
    return lambda folder: torch.save(content, folder / file)


def config(content, base):
    return text(
        'c.py', f"_base_ = ['{ROOT}/configs/{DET}.py', '{ROOT}/configs/{base}.py']\n{content}"
    )


def nothing(folder):
    pass


FSDP = '_base_/strategies/fsdp'
WEIGHTS = {'stem.proj.bias': torch.zeros(8)}
PRETRAINED = 'model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint'
DISTILL = 'cyclemlp_demo_distill --data folders --cfg-options model.teacher_checkpoint'

PROB = 'train_dataloader.dataset.pipeline.3.prob'

#: What is done to good data, arguments of tools/train.py, what is said.
ERRORS = [
    # Annotations of boxes.
    (text('coco/' + TRAIN_JSON, 'no json'), COCO, r'train2017\.json is no JSON'),
    (edit(lambda c: c['categories'][0].update(name='cat')), COCO, 'of train and val differ'),
    (update(1, VAL_JSON, area=None), COCO, r'val2017\.json: .*"area" is'),
    (edit(no_masks), MASKS, 'a mask head needs masks'),
    (drop('coco/train2017/*.jpg'), COCO, '6 of 6 images are missing'),
    (cut('coco/train2017/*', 3, 0), COCO, r'3 of 6 images looked at cannot be used.*is empty'),
    (drop('coco/annotations'), COCO, 'it lacks annotations/inst'),
    # Label images.
    (
        label(lambda a: np.where(a == 1, 77, a).astype(np.uint8)),
        ADE,
        r'labels 77 name no class; with 5 classes, labels 1 to 5 are the classes.*--ignore-label',
    ),
    (label(lambda a: np.stack([a] * 3, -1)), ADE, 'save label indices in one channel'),
    (label(lambda a: a.astype(np.uint16) + 300), ADE, r'labels up to 3\d\d; mmseg reads'),
    (label(lambda a: a[:20]), ADE, 'is 64×20, but its image is 64×48'),
    (drop('ade/annotations/training/*1.png'), ADE, 'images have no label'),
    (drop('ade/classes.txt'), ADE, 'classes.txt is missing'),
    (text('lists/classes.txt', 'a\na\nb\nc\n'), LISTS, 'class names are double'),
    (text('ade/classes.txt', 'a\na\nb\nc\nd\n'), ADE, 'class names are double'),
    (nothing, f'{ADE} --cfg-options model.test_cfg.mode=slide', 'needs crop_size and stride'),
    (nothing, f'{COCO} --cfg-options {PROB}=5', r'train_dataloader.dataset.pipeline: cannot be b'),
    # Images by class.
    (mkdir('folders/val/zebra'), FOLDERS, 'folders of train and val differ.*zebra'),
    (mkdir('folders/train/.ipynb_checkpoints'), FOLDERS, r'only in train: \[.*ipynb_ch'),
    (mkdir('folders/val/zebra'), OWN_FOLDERS, 'folders/val: has 5 class folders.*names 4'),
    (
        lines('x1.jpg 0\nx2.jpg 0\nx3.jpg 1\n'),
        LISTS,
        r'lists/train: 3 of 19 images are mis.*: x1\.jpg',
    ),
    (lines('a.jpg 7\n'), OWN_LISTS, 'labels 7 name no class; .* labels are 0 to 3'),
    (lines('a.jpg\n'), OWN_LISTS, r"1 of 17 lines are no .*line 17 'a\.jpg'"),
    # Configs.
    (text('c.py', 'model = dict()'), 'c.py', 'default_scope=None'),
    (
        nothing,
        f'{CHOSEN}("circle","square") val_dataloader.dataset.data_root=coco/',
        r'bbox_head\.num_classes: is 4, but the data set has 2 classes',
    ),
    (nothing, f'{CHOSEN}("cat","dog")', 'names of the config are not in the file: cat, dog'),
    (nothing, DET, r'data/coco.*there is no such'),
    (nothing, f'{IN1K} {CLASSES}"abcd"', r'metainfo.classes: is the text .abcd.,.*Write a comma'),
    (
        config("custom_hooks = [dict(type='EMAHook')]", FSDP),
        'c.py --data coco',
        r'ShardedStrategy shards .* this is one alone.*tools/dist_train\.sh.*EMAHook copies',
    ),
    # Arguments and settings.
    (nothing, 'cyclemlp_b1_in1kk', 'Did you mean cyclemlp_b1_in1k'),
    (nothing, f'{DET} --data nowhere', 'no such folder'),
    (nothing, f'{DET} --classes a', 'give it too'),
    (text('wd2', ''), f'{COCO} --work-dir wd2', r'wd2.*cannot be written'),
    *(
        (nothing, f'{COCO} --cfg-options {option}', expected)
        for option, expected in {
            'resume': 'resume.* KEY=VALUE',
            'train_cfg.max_epochs.x=1': '--cfg-options .* does not fit',
            'max_bad_fraction=-1': r'must be a number in \[0, 1\]',
            'model.backbone.archh=b1': 'model: .*cannot be built .*archh',
            'train_dataloader.batchsize=2': 'train_dataloader.batchsize: .*Did you mean batch_size',
        }.items()
    ),
    # Checkpoints.
    (nothing, f'{COCO} --resume gone.pth', 'does not exist'),
    (
        text('h.pth', 'PK\3\4' + 99 * '\0'),
        f'{COCO} --resume h.pth',
        'cannot be read .*truncated, dam',
    ),
    (
        save('w.pth', {'state_dict': WEIGHTS}),
        f'{COCO} --resume w.pth',
        'does not fit|cannot be resum',
    ),
    (text('wd/epoch_3.pth', 'broken'), f'{COCO} --resume', 'none of the 1 checkpoints .*epoch_3'),
    (save('w.pth', WEIGHTS), f'{COCO} --cfg-options {PRETRAINED}=w.pth', 'tensors are missing'),
    (nothing, f'{DISTILL}=gone.pth', r'checkpoint gone\.pth does not exist'),
    (save('w.pth', WEIGHTS), f'{COCO} --cfg-options load_from=w.pth', 'does not fit the model'),
]

#: What is done to good data, arguments of tools/check.py, the warning.
WARNINGS = [
    (update(2, bbox=[1, 1, 0, 5]), COCO, r'2 of \d+ boxes have no area'),
    (drop('coco/train2017/*1.jpg'), COCO, r'1 of 6 images are missing: 0+1\.jpg'),
    (cut('coco/train2017/*1.jpg', 1, -300), COCO, '1 of 6 images looked at cannot be used'),
    (drop('folders/train/circle/*'), FOLDERS, 'no image of 1 class: circle'),
    (twice, LISTS, r'lists: listed more than once: 1 image of train, .*with label 1 and 3'),
    (lines('gone1.jpg 0\n'), LISTS, r'lists/train: 1 of 17 images are missing: gone1\.jpg'),
    (
        nothing,
        f'{COCO} --classes circle square',
        r'not trained, as .* not name them: \w+ \(\d+ box',
    ),
    (
        nothing,
        f'{COCO} --cfg-options train_dataloader.batch_size=2',
        'the batch is 2, but the learning rate was chosen for 8',
    ),
]

#: The same for tools/test.py: figures of wrong annotations are wrong.
EVALUATIONS = [
    (update(None, VAL_JSON, area=1.0), MASKS, 'warning: .*val2017.json: the "area" of'),
    (drop(f'coco/{TRAIN_JSON}'), COCO, 'holds no state dict'),  # val is enough
    (update(None, VAL_JSON, bbox=[0.1, 0.1, 0.2, 0.2]), COCO, 'error: .*val2017.json: .* 0 to 1'),
    (small_labels, ADE, 'error: .*annotations/validation'),
    (drop('folders/val/circle'), OWN_FOLDERS, 'error: .*class folder'),
]


@pytest.mark.few(24)
@pytest.mark.parametrize('prepare, line, expected', ERRORS)
def test_training_stops_before_it_begins(prepare, line, expected, data, capsys):
    prepare(data)
    config, *more = line.split()
    line = ' '.join([config, *['--work-dir', 'wd'], *more])
    code, printed = outcome_of(train, line, capsys)
    assert code == 2, printed
    assert re.search(expected, printed, re.DOTALL), printed
    assert re.search(r'^(error: |.*: error: )', printed, re.MULTILINE), printed


@pytest.mark.parametrize('prepare, line, expected', WARNINGS)
def test_the_check_warns_with_a_count(prepare, line, expected, data, capsys):
    prepare(data)
    code, printed = outcome_of(check, f'{line} --full', capsys)
    assert code == 0, printed
    assert re.search(rf'^warning: .*{expected}', printed, re.MULTILINE), printed


@pytest.mark.few(3)
@pytest.mark.parametrize('prepare, line, expected', EVALUATIONS)
def test_an_evaluation_looks_at_its_data_as_well(prepare, line, expected, data, capsys):
    prepare(data)
    torch.save(dict(state_dict={}), 'c.pth')
    code, printed = outcome_of(run_test, line.replace(' ', ' c.pth --work-dir wd ', 1), capsys)
    assert code == 2 and re.search(expected, printed, re.DOTALL), printed


@pytest.mark.usefixtures('data')
@pytest.mark.parametrize('line', [COCO, MASKS, ADE, FOLDERS, LISTS, OWN_FOLDERS, OWN_LISTS])
def test_good_data_have_nothing_to_say(line, capsys):
    code, printed = outcome_of(check, f'{line} --full', capsys)
    assert code == 0 and '0 errors' in printed, printed
    assert not re.search(r'^warning: (?!train_dataloader.batch_size)', printed, re.MULTILINE)
