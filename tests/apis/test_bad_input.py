"""Annotations, label images, configs, checkpoints and arguments as people get them wrong.

Each ends before the first iteration with exit code 2 and one sentence that says what, where and how
to fix it; or it is a warning with a count. Images are in tests/datasets/test_load_image.py.
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
        content = change(content) or content
        path.write_text(json.dumps(content))

    return step


def each(key, change, number=None, file=TRAIN_JSON):
    """A step that changes entries of an annotation file's list, all or the first few."""
    return edit(lambda content: [change(entry) for entry in content[key][:number]] and None, file)


def masks(value, number=1, file=TRAIN_JSON):
    """A step that sets the first "segmentation"s."""
    return each('annotations', lambda ann: ann.update(segmentation=value), number, file)


def long_image(folder):
    """Another image, of 20000 x 40 pixels, with a box."""
    Image.new('RGB', (20000, 40)).save(folder / 'coco/train2017/long.png')
    edit(lambda c: c['images'].append(dict(id=99, file_name='long.png', width=20000, height=40)))(
        folder
    )
    edit(
        lambda c: c['annotations'].append(
            dict(id=999, image_id=99, category_id=1, bbox=[1, 1, 300, 30], area=9000)
        )
    )(folder)


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


def nothing(folder):
    pass


DEMO = ROOT / 'configs' / f'{DET}.py'
SHARDED = ROOT / 'configs/_base_/strategies/fsdp.py'
COCO, ADE, FOLDERS = ['--data', 'coco'], ['--data', 'ade'], ['--data', 'folders']


def own(root, ann_file):
    """Options for images of one's own, without --data."""
    return [
        '--cfg-options',
        *(
            f'{phase}_dataloader.dataset.{setting}'
            for phase, split in (('train', 'train'), ('val', 'val'), ('test', 'val'))
            for setting in (
                f'data_root={root}',
                f'split={split}',
                f'ann_file={ann_file.format(split)}',
                'metainfo.classes=("a","b","c","d")',
            )
        ),
    ]


OWN_FOLDERS, OWN_LISTS = own('folders', ''), own('lists', '{}_list.txt')

#: name: (what is done to good data, arguments of tools/train.py, what is said).
ERRORS = {
    # Annotations of boxes.
    'no JSON': (text('coco/' + TRAIN_JSON, 'no json'), [DET, *COCO], r'train2017\.json is no JSON'),
    'truncated JSON': (
        lambda f: (f / 'coco' / TRAIN_JSON).write_text(
            (f / 'coco' / TRAIN_JSON).read_text()[:-100]
        ),
        [DET, *COCO],
        r'is no JSON',
    ),
    'JSON of something else': (
        edit(lambda c: [1, 2]),
        [DET, *COCO],
        r'is no COCO annotation file: it lacks',
    ),
    'no categories': (edit(lambda c: c.update(categories=[])), [DET, *COCO], 'has no categories'),
    'category without a name': (
        edit(lambda c: c['categories'][0].pop('name') and None),
        [DET, *COCO],
        'needs an "id" and a "name"',
    ),
    'double categories': (
        edit(lambda c: c['categories'].append(c['categories'][0])),
        [DET, *COCO],
        'are double',
    ),
    'train and val differ': (
        edit(lambda c: c['categories'][0].update(name='cat')),
        [DET, *COCO],
        'category names of train and val differ',
    ),
    'three numbers for a box': (
        each('annotations', lambda a: a.update(bbox=[1, 2, 3]), 2),
        [DET, *COCO],
        r'2 of \d+ boxes are malformed: "bbox" is not four',
    ),
    'a box of nan': (
        each('annotations', lambda a: a.update(bbox=[1, 2, float('nan'), 3]), 1),
        [DET, *COCO],
        'not four finite numbers',
    ),
    'a box of text': (
        each('annotations', lambda a: a.update(bbox=['1', '2', '3', '4']), 1),
        [DET, *COCO],
        'not four finite numbers',
    ),
    'an annotation without an image': (
        each('annotations', lambda a: a.pop('image_id'), 1),
        [DET, *COCO],
        'they lack image_id',
    ),
    'category ids of texts': (
        each('annotations', lambda a: a.update(category_id=str(a['category_id']))),
        [DET, *COCO],
        r'category_id is a number in one place and a text in the other.*\n.*none of its',
    ),
    'no box can be learned': (
        each('annotations', lambda a: a.update(bbox=[1, 1, 0, 0])),
        [DET, *COCO],
        'none of its .* can be learned',
    ),
    'images of null': (
        edit(lambda c: c.update(images=None)),
        [DET, *COCO],
        'its "images" is no list, but None',
    ),
    'annotations of null': (
        edit(lambda c: c.update(annotations=None)),
        [DET, *COCO],
        'its "annotations" is no list, but None',
    ),
    'a category of a number': (
        edit(lambda c: c['categories'][0].update(name=3)),
        [DET, *COCO],
        'a "name" .a text',
    ),
    'annotations of texts': (
        edit(lambda c: c['annotations'].extend(['x', 'y'])),
        [MASKS, *COCO],
        r'2 of \d+ boxes are malformed \(no object\)',
    ),
    'an area of null': (
        each('annotations', lambda a: a.update(area=None), 1),
        [DET, *COCO],
        '"area" is no finite number',
    ),
    'areas of nan': (
        each('annotations', lambda a: a.update(area=float('nan'))),
        [DET, *COCO],
        '"area" is no finite number',
    ),
    'an annotation id of a list': (
        each('annotations', lambda a: a.update(id=[1]), 1),
        [DET, *COCO],
        'id is no number',
    ),
    'a category id of a list': (
        each('annotations', lambda a: a.update(category_id=[1]), 1),
        [DET, *COCO],
        'category_id is no number',
    ),
    'an image id of a list': (
        each('images', lambda i: i.update(id=[1]), 1),
        [DET, *COCO],
        '1 image lack "id"',
    ),
    'an image name of a number': (
        each('images', lambda i: i.update(file_name=5), 1),
        [DET, *COCO],
        r'1 image lack "file_name".*Write .*"file_name"',
    ),
    'images of LVIS': (
        each('images', lambda i: i.update(coco_url='http://x/' + i.pop('file_name'))),
        [MASKS, *COCO],
        r'6 images lack "file_name" \(a text; LVIS.* coco_url',
    ),
    'nothing but crowds': (
        each('annotations', lambda a: a.update(iscrowd=1)),
        [DET, *COCO],
        'none of its .* can be learned',
    ),
    'a crowd of text': (
        each('annotations', lambda a: a.update(iscrowd='0'), 1),
        [DET, *COCO],
        '"iscrowd" is neither 0 nor 1',
    ),
    'double image ids': (
        each('images', lambda i: i.update(id=1)),
        [DET, *COCO],
        '1 image id are used twice: 1',
    ),
    'polygons from 0 to 1': (
        each(
            'annotations',
            lambda a: a.update(
                segmentation=[[v / 64 for v in polygon] for polygon in a['segmentation']]
            ),
        ),
        [MASKS, *COCO],
        r'\d+ annotations have polygons that cover less than a quarter .*pixels',
    ),
    'no annotations': (
        edit(lambda c: c['annotations'].clear(), VAL_JSON),
        [DET, *COCO],
        'it has no boxes',
    ),
    'an encoding of Windows': (
        lambda f: (f / 'coco' / TRAIN_JSON).write_bytes(
            (f / 'coco' / TRAIN_JSON).read_bytes().replace(b'circle', b'k\xe4se')
        ),
        [DET, *COCO],
        r'train2017\.json is not in UTF-8: save it as UTF-8',
    ),
    'images without a size': (
        each('images', lambda i: i.pop('width')),
        [DET, *COCO],
        '6 images have no "width" and "height"',
    ),
    'images without a name': (
        each('images', lambda i: i.pop('file_name'), 1),
        [DET, *COCO],
        '1 image lack "file_name"',
    ),
    'all images missing': (
        drop('coco/train2017/*.jpg'),
        [DET, *COCO],
        r'6 of 6 images are missing',
    ),
    'masks without polygons': (
        each('annotations', lambda a: a.pop('segmentation')),
        [MASKS, *COCO],
        'a mask head needs masks',
    ),
    'validation without masks': (
        each('annotations', lambda a: a.pop('segmentation'), file=VAL_JSON),
        [MASKS, *COCO],
        r'val2017\.json has boxes but no "segmentation"',
    ),
    'an annotation without a mask': (
        masks([]),
        [MASKS, *COCO],
        '1 annotation have no "segmentation", and masks are needed',
    ),
    'a flat polygon': (
        masks([1, 1, 20, 1, 20, 20]),
        [MASKS, *COCO],
        'no list of polygons .* ids 1',
    ),
    'a flat polygon in validation': (
        masks([1, 1, 20, 1, 20, 20], file=VAL_JSON),
        [MASKS, *COCO],
        'no list of polygons',
    ),
    'a short polygon in validation': (
        masks([[1, 2, 3, 4]], file=VAL_JSON),
        [MASKS, *COCO],
        'which pycocotools cannot read',
    ),
    'a mask of text': (masks('abc'), [MASKS, *COCO], 'no list of polygons'),
    'a polygon of nan': (
        masks([[float('nan')] * 6]),
        [MASKS, *COCO],
        'something else than finite numbers',
    ),
    'a run-length code of another size': (
        masks(dict(size=[64, 48], counts=[0, 9])),
        [MASKS, *COCO],
        r'an RLE whose "size" is not \[height, width\]',
    ),
    'a run-length code without a size': (
        masks(dict(counts=[0, 9])),
        [MASKS, *COCO],
        'an RLE without "size" and "counts"',
    ),
    'a run-length code of nonsense': (
        masks(dict(size=[48, 64], counts='\x00\x01zz')),
        [MASKS, *COCO],
        '"counts" cannot be decoded',
    ),
    'a run-length code of too much': (
        masks(dict(size=[48, 64], counts=[0, 9999])),
        [MASKS, *COCO],
        'more pixels than their image has',
    ),
    'half of the images broken': (
        lambda f: [p.write_bytes(b'') for p in sorted(f.glob('coco/train2017/*'))[:3]],
        [DET, *COCO],
        r'3 of 6 images looked at cannot be used.*is empty',
    ),
    'no annotations folder': (drop('coco/annotations'), [DET, *COCO], 'it lacks annotations/inst'),
    # Label images.
    'a stray label': (
        label(lambda a: np.where(a == 1, 77, a).astype(np.uint8)),
        [SEG, *ADE],
        r'labels 77 name no class; with 5 classes, labels 1 to 5 are the classes.*--ignore-label',
    ),
    'colours for labels': (
        label(lambda a: np.stack([a] * 3, -1)),
        [SEG, *ADE],
        r'save label indices in one channel',
    ),
    'labels of 16 bits': (
        label(lambda a: np.where(a == 1, 300, a.astype(np.uint16))),
        [SEG, *ADE],
        r'labels up to 300; mmseg reads',
    ),
    'a truncated label image': (
        label(lambda a: encode(picture('L'), 'PNG')[:500]),
        [SEG, *ADE],
        'truncated',
    ),
    'a label image of another size': (
        label(lambda a: a[:20]),
        [SEG, *ADE],
        'is 64×20, but its image is 64×48',
    ),
    'no label image': (
        drop('ade/annotations/training/*1.png'),
        [SEG, *ADE],
        'images in .* have no label',
    ),
    'two checks of labels': (
        text(
            'c.py',
            f"""_base_ = '{ROOT}/configs/{SEG}.py'
steps = [dict(type='LoadAnnotations'), dict(type='CheckLabels', num_classes=5),
         dict(type='CheckLabels', num_classes=5, ignore_label=5)]
train_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root='ade', reduce_zero_label=True, pipeline=steps,
    metainfo=dict(classes=tuple('abcde'))))
""",
        ),
        ['c.py'],
        r'CheckLabels stands in it 2 times.*ignore_label=None, then ignore_label=5',
    ),
    'no class names': (drop('ade/classes.txt'), [SEG, *ADE], 'classes.txt is missing'),
    'one class name too few': (
        text('ade/classes.txt', 'a\nb\nc\n'),
        [SEG, *ADE],
        r'labels 4, 5 name no class',
    ),
    'double class names': (
        text('ade/classes.txt', 'a\na\nb\nc\nd\n'),
        [SEG, *ADE],
        'class names are double',
    ),
    'two kinds of images': (
        lambda f: next(f.glob('ade/images/training/*')).rename(f / 'ade/images/training/x.jpeg'),
        [SEG, *ADE],
        r'mixes \.jpeg, \.jpg',
    ),
    # Images by class.
    'class folders differ': (
        lambda f: next(f.glob('folders/val/*')).rename(f / 'folders/val/zebra'),
        [CLS, *FOLDERS],
        r'class folders of train and val differ.*zebra',
    ),
    "Jupyter's folder among the classes": (
        lambda f: (f / 'folders/train/.ipynb_checkpoints').mkdir(),
        [CLS, *FOLDERS],
        r'every folder for a class, train/\.ipynb_checkpoints as well',
    ),
    "a Mac's folder of a zip file among the classes": (
        lambda f: [(f / f'folders/{split}/__MACOSX').mkdir() for split in ('train', 'val')],
        [CLS, *FOLDERS],
        r'for a class, train/__MACOSX, val/__MACOSX as well',
    ),
    'class folders, without --data': (
        lambda f: (f / 'folders/val/.ipynb_checkpoints').mkdir(),
        [CLS, *OWN_FOLDERS],
        r'folders/val: mmpretrain takes every folder for a class, \.ipynb_checkpoints',
    ),
    'more class folders than classes': (
        lambda f: (f / 'folders/val/zebra').mkdir(),
        [CLS, *OWN_FOLDERS],
        r'folders/val: has 5 class folders.*names 4 classes',
    ),
    'listed images that are missing': (
        add_lines('gone1.jpg 0\ngone2.jpg 0\ngone3.jpg 1\n'),
        [CLS, '--data', 'lists'],
        r'train_list\.txt: 3 of 19 images are not in .*train: gone1\.jpg, gone2',
    ),
    'a listed label too high': (
        add_lines('gone1.jpg 7\n'),
        [CLS, *OWN_LISTS],
        'labels 7 name no class; with 4 classes, labels are 0 to 3',
    ),
    'a line without a label': (
        add_lines('gone1.jpg\n'),
        [CLS, *OWN_LISTS],
        r"1 of 17 lines are no .*line 17 'gone1\.jpg'",
    ),
    'no val folder': (drop('folders/val'), [CLS, *FOLDERS], 'lacks val/'),
    # Configs.
    'config of another language': (
        text('c.py', 'model = {'),
        ['c.py', *COCO],
        r'config c\.py cannot be read: SyntaxError',
    ),
    'a base that is not there': (
        text('c.py', "_base_ = 'gone.py'"),
        ['c.py'],
        r'c\.py cannot be read: FileNotFoundError',
    ),
    'an import that is not there': (
        text('c.py', f"_base_ = '{DEMO}'\ncustom_imports = dict(imports=['gone_module'])"),
        ['c.py', *COCO],
        r'c\.py cannot be read: .*gone_module',
    ),
    'no toolbox': (text('c.py', 'model = dict()'), ['c.py'], 'default_scope=None'),
    'heads for other classes': (
        nothing,
        [
            DET,
            '--cfg-options',
            'train_dataloader.dataset.data_root=coco/',
            'val_dataloader.dataset.data_root=coco/',
            'train_dataloader.dataset.metainfo.classes=("circle","square")',
        ],
        r'bbox_head\.num_classes: is 4, but the data set has 2 classes',
    ),
    'class names that the file lacks': (
        nothing,
        [
            DET,
            '--cfg-options',
            'train_dataloader.dataset.data_root=coco/',
            'train_dataloader.dataset.metainfo.classes=("cat","dog")',
        ],
        r'2 class names of the config are not in the file: cat, dog \(it has',
    ),
    'no data where the config says': (nothing, [DET], r'data/coco.*there is no such'),
    'a type that does not exist': (
        nothing,
        [DET, *COCO, '--cfg-options', 'model.backbone.type=CycleMPL'],
        r'model: .*cannot be built \(KeyError.*CycleMPL',
    ),
    'a setting that does not exist': (
        nothing,
        [DET, *COCO, '--cfg-options', 'model.backbone.archh=b1'],
        r'model: .*cannot be built .*archh',
    ),
    'top-5 of four classes': (
        nothing,
        [
            'cyclemlp_b1_in1k',
            '--cfg-options',
            'model.head.num_classes=4',
            'train_dataloader.dataset.metainfo.classes=("a","b","c","d")',
        ],
        r'val_evaluator\.topk: is .1, 5., but the data set has 4 classes',
    ),
    'sharding without a GPU': (
        text('c.py', f"_base_ = ['{DEMO}', '{SHARDED}']\nstrategy = dict(type='FSDPStrategy')"),
        ['c.py', *COCO],
        r'strategy: FSDPStrategy .* PyTorch sees none',
    ),
    'sharding in one process': (
        text('c.py', f"_base_ = ['{DEMO}', '{SHARDED}']"),
        ['c.py', *COCO],
        r'strategy: ShardedStrategy shards .* this is one alone.*tools/dist_train\.sh',
    ),
    'averaged weights of a sharded model': (
        text('c.py', f"_base_ = ['{DEMO}', '{SHARDED}']\ncustom_hooks = [dict(type='EMAHook')]"),
        ['c.py', *COCO],
        'custom_hooks: EMAHook copies the model',
    ),
    # Arguments.
    'an option without a value': (
        nothing,
        [DET, *COCO, '--cfg-options', 'resume'],
        'is not KEY=VALUE',
    ),
    'an option that does not fit': (
        nothing,
        [DET, *COCO, '--cfg-options', 'train_cfg.max_epochs.x=1'],
        r'--cfg-options .* does not fit',
    ),
    'a work dir that is a file': (
        text('wd2', ''),
        [DET, *COCO, '--work-dir', 'wd2'],
        r'wd2.*cannot be written',
    ),
    'a negative fraction': (
        nothing,
        [DET, *COCO, '--cfg-options', 'max_bad_fraction=-1'],
        r'must be a number in \[0, 1\]',
    ),
    # Settings.
    **{
        f'setting {option}': (nothing, [DET, *COCO, '--cfg-options', option], said)
        for option, said in {
            'optim_wrapper.optimizer.type=Adamm': r"optimizer\.type: there is no 'Adamm'",
            'optim_wrapper.optimizer.lr=abc': r"optim_wrapper\.optimizer: AdamW cannot .*'abc'",
            'optim_wrapper.type=Wrapper': r"optim_wrapper\.type: there is no 'Wrapper'",
            'train_cfg.max_epochs=abc': r"max_epochs: is 'abc', but must be a whole number from 1",
            'train_cfg.max_epochs=0': 'max_epochs: is 0, but must be a whole number from 1',
            'randomness.seed=abc': r"randomness\.seed: is 'abc', but must be a whole number from 0",
            'max_bad_fraction=abc': "max_bad_fraction: is 'abc', but must be a number in",
            'max_non_finite=abc': "max_non_finite: is 'abc', but must be a whole number from 1",
            'train_dataloader.batch_size=0': 'train_dataloader.batch_size: is 0, but must be',
            'val_dataloader.num_workers=-1': 'val_dataloader.num_workers: is -1, but must be',
            'train_dataloader.num_workers=0': 'persistent_workers: is True, but num_workers is 0',
            'param_scheduler=3': 'param_scheduler is 3, but must be a list of settings',
            'custom_hooks=3': 'custom_hooks is 3, but must be a list of settings',
            'custom_hooks=[3]': r'custom_hooks is \[3\], but must be a list of settings',
            'train_cfg=3': 'train_cfg is 3, but must be settings',
            'default_hooks=3': 'default_hooks is 3, but must be settings',
            'train_dataloader=3': 'train_dataloader is 3, but must be settings',
            'train_dataloader.dataset=3': 'train_dataloader.dataset is 3, but must be settings',
            'val_evaluator=3': 'val_evaluator is 3, but must be a list of settings',
            'model=3': 'model is 3, but must be settings',
            'param_scheduler.0.type=Linear': r"param_scheduler\[0\]\.type: there is no 'Linear'",
            'val_dataloader=None': 'val_dataloader: is None, but not all of val_d',
            'default_hooks.logger=3': 'default_hooks.logger is 3, but must be settings',
            'default_hooks.logger.interval=0': r'logger\.interval: is 0, but must be a whole',
            'default_hooks.checkpoint.interval=x': r"checkpoint\.interval: is 'x', but must",
            'train_dataloader.sampler=3': 'train_dataloader.sampler is 3, but must be settings',
            'val_evaluator.type=Nope': r"val_evaluator\.type: there is no 'Nope'",
            'train_cfg.type=Nope': r"train_cfg\.type: there is no 'Nope'",
            'train_dataloader.sampler.type=Nope': r"sampler\.type: there is no 'Nope'",
            'val_dataloader.dataset.pipeline.0.type=Nope': r"pipeline\[0\]\.type: there is no 'N",
            'default_hooks.logger.type=Nope': r"default_hooks\.logger\.type: there is no 'Nope'",
            'train_dataloader=None': 'train_dataloader: is None; a training needs it',
            'model=None': 'model: is None; a training needs it',
        }.items()
    },
    # Checkpoints.
    'resume from nowhere': (nothing, [DET, *COCO, '--resume', 'gone.pth'], 'does not exist'),
    'resume from a folder': (nothing, [DET, *COCO, '--resume', 'coco'], 'is not a file'),
    'resume from half a file': (
        lambda f: (f / 'h.pth').write_bytes(b'PK\x03\x04' + bytes(99)),
        [DET, *COCO, '--resume', 'h.pth'],
        'cannot be read .*truncated, damaged',
    ),
    'resume from weights alone': (
        lambda f: torch.save({'state_dict': {'a': torch.ones(1)}}, f / 'w.pth'),
        [DET, *COCO, '--resume', 'w.pth'],
        'does not fit|cannot be resumed',
    ),
    'no checkpoint can be read': (
        text('wd/epoch_3.pth', 'broken'),
        [DET, *COCO, '--resume'],
        'none of the 1 checkpoints in wd can be read; .*epoch_3',
    ),
    'weights of another model': (
        lambda f: torch.save({'a': torch.ones(1)}, f / 'w.pth'),
        [DET, *COCO, '--cfg-options', 'load_from=w.pth'],
        'does not fit the model',
    ),
}

#: name: (what is done to good data, arguments of tools/check.py, the warning).
WARNINGS = {
    'boxes without area': (
        each('annotations', lambda a: a.update(bbox=[1, 1, 0, 5]), 2),
        [DET, *COCO],
        r'2 of \d+ boxes have no area.*left out of training and evaluation, ids 1, 2',
    ),
    'boxes outside': (
        each('annotations', lambda a: a.update(bbox=[900, 1, 5, 5]), 1),
        [DET, *COCO],
        r'1 of \d+ boxes lie outside their image',
    ),
    'boxes that reach out': (
        each('annotations', lambda a: a.update(bbox=[1, 1, 500, 5]), 1),
        [DET, *COCO],
        'reach beyond the image',
    ),
    'unknown categories': (
        each('annotations', lambda a: a.update(category_id=99), 1),
        [DET, *COCO],
        'have an unknown category id',
    ),
    'unknown images': (
        each('annotations', lambda a: a.update(image_id=99), 1),
        [DET, *COCO],
        'belong to no image of the file',
    ),
    'polygons of two points': (
        each('annotations', lambda a: a.update(segmentation=[[1, 2, 3, 4]]), 1),
        [MASKS, *COCO],
        '1 annotation have no polygon of at least three points',
    ),
    'a polygon of another object': (
        masks([[60, 44, 63, 44, 63, 47]]),
        [MASKS, *COCO],
        '1 annotation have polygons that cover less than a quarter of their box, ids 1',
    ),
    'one image missing': (
        drop('coco/train2017/*1.jpg'),
        [DET, *COCO],
        r'1 of 6 images are missing: 0+1\.jpg',
    ),
    'one image truncated': (
        lambda f: (f / 'coco/train2017/000000000001.jpg').write_bytes(encode(picture())[:-300]),
        [DET, *COCO],
        r'1 of 6 images looked at cannot be used',
    ),
    'an image too long': (
        long_image,
        [DET, *COCO],
        r'1 of 7 images looked at cannot be used: long\.png is too long \(20000×40\)',
    ),
    'an empty class folder': (
        drop('folders/train/circle/*'),
        [CLS, *FOLDERS],
        'no image of 1 class: circle',
    ),
    'one listed image missing': (
        add_lines('gone1.jpg 0\n'),
        [CLS, '--data', 'lists'],
        r'1 of 17 images are not in .*train: gone1\.jpg',
    ),
    'objects listed twice': (
        edit(lambda c: c['annotations'].extend(dict(a, id=900) for a in c['annotations'][:3])),
        [DET, *COCO],
        '3 objects are listed more than once',
    ),
    'classes left out': (
        nothing,
        [DET, *COCO, '--classes', 'circle', 'square'],
        r'not trained, as the config does not name them: \w+ \(\d+ box',
    ),
    'another batch': (
        nothing,
        [DET, *COCO, '--cfg-options', 'train_dataloader.batch_size=2'],
        'the batch is 2, but the learning rate was chosen for 8',
    ),
}


@pytest.mark.parametrize('case', ERRORS)
def test_training_stops_before_it_begins(case, data, capsys):
    if case == 'sharding without a GPU' and torch.cuda.is_available():
        pytest.skip('there is one')
    prepare, argv, said = ERRORS[case]
    prepare(data)
    work_dir = [] if '--work-dir' in argv else ['--work-dir', 'wd']
    code, printed = outcome_of(train, [argv[0], *work_dir, *argv[1:]], capsys)
    assert code == 2, printed
    assert re.search(said, printed, re.DOTALL), printed
    assert re.search(r'^(error: |.*: error: )', printed, re.MULTILINE), printed
    assert 'Traceback' not in printed and 'Epoch(train)' not in printed


@pytest.mark.parametrize('case', WARNINGS)
def test_the_check_warns_with_a_count(case, data, capsys):
    prepare, argv, said = WARNINGS[case]
    prepare(data)
    code, printed = outcome_of(check, [*argv, '--full'], capsys)
    assert code == 0, printed
    assert re.search(rf'^warning: .*{said}', printed, re.MULTILINE), printed


def _mask_of_another_size(folder):
    for file in (folder / 'ade/annotations/validation').iterdir():
        Image.new('L', (10, 10)).save(file)


@pytest.mark.parametrize(
    'prepare, argv, said',
    [
        (
            each(
                'annotations', lambda a: a['bbox'].__setitem__(slice(2, 4), [60, 44]), file=VAL_JSON
            ),
            [DET, *COCO],
            'warning: .*val2017.json: .* reach beyond the image',
        ),
        (
            each('annotations', lambda a: a.update(area=1.0), file=VAL_JSON),
            [MASKS, *COCO],
            'warning: .*val2017.json: the "area" of',
        ),
        (
            lambda f: (f / 'coco/annotations/instances_train2017.json').unlink(),
            [DET, *COCO],
            'holds no state dict',
        ),  # the validation part is enough
        (
            each('annotations', lambda a: a.update(bbox=[0.1, 0.1, 0.2, 0.2]), file=VAL_JSON),
            [DET, *COCO],
            'error: .*val2017.json: all boxes are made of numbers from 0 to 1',
        ),
        (
            each('images', lambda i: i.update(file_name='x\\' + i['file_name']), file=VAL_JSON),
            [MASKS, *COCO],
            'error: .*val2017: 2 of 2 images are missing: .*in another folder',
        ),
        (_mask_of_another_size, [SEG, *ADE], 'error: .*annotations/validation'),
        (
            lambda f: shutil.rmtree(f / 'folders/val/circle'),
            [CLS, *OWN_FOLDERS],
            'error: .*class folder',
        ),
    ],
)
def test_an_evaluation_looks_at_its_data_as_well(prepare, argv, said, data, capsys):
    """Figures of wrong annotations are wrong, and no training has looked at them."""
    prepare(data)
    torch.save(dict(state_dict={}), 'c.pth')
    code, printed = outcome_of(run_test, [argv[0], 'c.pth', '--work-dir', 'wd', *argv[1:]], capsys)
    assert code == 2 and 'Traceback' not in printed, printed
    assert re.search(said, printed, re.DOTALL), printed


@pytest.mark.usefixtures('data')
def test_good_data_have_nothing_to_say(capsys):
    for argv in (
        [DET, *COCO],
        [MASKS, *COCO],
        [SEG, *ADE],
        [CLS, *FOLDERS],
        [CLS, '--data', 'lists'],
        [CLS, *OWN_FOLDERS],
        [CLS, *OWN_LISTS],
    ):
        code, printed = outcome_of(check, [*argv, '--full'], capsys)
        assert code == 0 and '0 errors' in printed, printed
        assert not re.search(r'^warning: (?!train_dataloader.batch_size)', printed, re.MULTILINE)


def test_what_nobody_thought_of_comes_with_a_sentence_in_front(capsys):
    def tool():
        raise ZeroDivisionError('deep inside')

    with pytest.raises(ZeroDivisionError):
        run_tool(tool)
    assert 'error: unexpected ZeroDivisionError: deep inside' in capsys.readouterr().err
