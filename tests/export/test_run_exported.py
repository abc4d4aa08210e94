"""tools/run_exported.py: what tools/infer.py writes, without PyTorch and OpenMMLab."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from paths import ROOT
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from toy_models import save_classifier, save_segmentor

import run_exported
from cyclemlp_mm.apis.export import export
from cyclemlp_mm.apis.infer import infer
from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.engine import use_own_data
from cyclemlp_mm.export import metadata

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')


@pytest.fixture(scope='session')
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp('classifier'))


@pytest.fixture(scope='module')
def segmentor_of_own_data(tmp_path_factory):
    """With the config that a training with ``--data`` saves."""
    folder = tmp_path_factory.mktemp('segmentor')
    data = shapes.write_ade20k(folder / 'data', 2, 2, (64, 64))
    names = (data / 'classes.txt').read_text().split()
    config, checkpoint = save_segmentor(folder, names)
    cfg = Config.fromfile(config)
    use_own_data(cfg, data)
    assert 'CheckLabels' in str(cfg.test_dataloader)
    cfg.dump(config)
    return config, checkpoint


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Generated ones of several sizes, one that EXIF turns, a grey one."""
    root = tmp_path_factory.mktemp('images')
    data = shapes.write_coco(root / 'data', 1, 3, (96, 72))
    folder = root / 'folder'
    folder.mkdir()
    for i, path in enumerate(sorted((data / 'val2017').iterdir())):
        image = Image.open(path).convert('RGB')
        image.resize([(96, 72), (130, 211), (200, 61)][i]).save(
            folder / ('0.jpg', '1.png', '2.bmp')[i]
        )
    exif = Image.Exif()
    exif[0x0112] = 6
    image.resize((150, 100)).save(folder / 'turned.jpeg', exif=exif)
    image.convert('L').save(folder / 'grey.png')
    return folder


@pytest.fixture(scope='module')
def exported(tmp_path_factory, request):
    """From the name of a model's fixture to its ONNX file, written once."""
    folder, files = tmp_path_factory.mktemp('exported'), {}

    def get(kind, part='model'):
        if (kind, part) not in files:
            files[kind, part] = folder / f'{kind}_{part}.onnx'
            model = map(str, request.getfixturevalue(kind))
            # Below 18, the exporter that is quick.
            export([*model, str(files[kind, part]), '--part', part, '--opset', '17'])
        return files[kind, part]

    return get


def facts_of(path):
    return {prop.key: prop.value for prop in onnx.load(str(path)).metadata_props}


def json_of(folder):
    return json.loads((folder / 'predictions.json').read_text())


def run(*arguments):
    run_exported.main([str(argument) for argument in arguments])


KINDS = [
    'detector',
    'segmentor',
    'segmentor_of_own_data',
    'classifier',
    pytest.param('mask_detector', marks=pytest.mark.slow),
]


@pytest.mark.parametrize('kind', KINDS)
def test_predictions_are_those_of_infer(kind, images, exported, tmp_path, request):
    """Pixel by pixel, and box by box, in original pixels, in one format."""
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    infer([*map(str, request.getfixturevalue(kind)), str(images), '--out', str(ours), '--json'])
    run(exported(kind), images, '--out', theirs)
    expected, got = json_of(ours), json_of(theirs)
    assert len(got['images']) == 5 and got['categories'] == expected['categories']
    for one, other in zip(expected['images'], got['images'], strict=True):
        np.testing.assert_allclose(one.pop('scores', 0), other.pop('scores', 0), atol=1e-5)
        assert one == other
        if 'mask_file' in one:
            pair = [np.asarray(Image.open(d / one['mask_file'])) for d in (ours, theirs)]
            assert (pair[0] != pair[1]).sum() == 0
    assert len(got['annotations']) >= 10 or kind not in ('detector', 'mask_detector')
    for one, other in zip(expected['annotations'], got['annotations'], strict=True):
        np.testing.assert_allclose(one.pop('bbox'), other.pop('bbox'), atol=1e-3)
        np.testing.assert_allclose(one.pop('score'), other.pop('score'), atol=1e-5)
        np.testing.assert_allclose(one.pop('area'), other.pop('area'), rtol=1e-3)
        pair = [
            coco_mask.decode(a.pop('segmentation')) for a in (one, other) if a.get('segmentation')
        ]
        assert one == other and (not pair or (pair[0] != pair[1]).mean() < 1e-4)
    COCO(str(theirs / 'predictions.json'))
    names = ['0.jpg', '1.png', '2.png', 'grey.png', 'turned.jpg']
    assert sorted(path.name for path in (theirs / 'vis').iterdir()) == names
    assert Image.open(theirs / 'vis' / 'turned.jpg').size == (100, 150)


BLOCKED = """
import sys, runpy
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Blocker())
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""
HEAVY = ['torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'cyclemlp_mm', 'pycocotools']


@pytest.mark.parametrize('missing', ['PIL', pytest.param('cv2', marks=pytest.mark.slow)])
def test_without_pytorch_and_one_library_of_images(missing, images, exported, tmp_path):
    argv = [ROOT / 'tools' / 'run_exported.py', exported('detector'), images, '--out', tmp_path]
    code = BLOCKED.format(blocked=[*HEAVY, missing], argv=list(map(str, argv)))
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ('OpenCV is not installed: results differ' in done.stdout) == (missing == 'cv2')
    assert len(list((tmp_path / 'vis').iterdir())) == len(json_of(tmp_path)['images']) == 5


def test_metadata(exported, detector):
    """What a file says of itself; readers of the older keys find them unchanged."""
    meta = facts_of(exported('detector'))
    facts = json.loads(meta.pop('cyclemlp_mm'))
    assert (meta['config'], meta['channels']) == ('toy', 'RGB')
    assert json.loads(meta['mean']) == facts['mean'] == [123.675, 116.28, 103.53]
    assert (facts['task'], facts['part'], facts['reasons']) == ('detection', 'model', [])
    assert facts['classes'] == list(shapes.CLASSES) and len(facts['palette']) == 4
    [step] = facts['steps']
    assert (step['type'], step['scale'], step['keep_ratio']) == ('Resize', [128, 128], True)
    assert facts['pad'] == dict(size=None, divisor=1, value=0) and facts['score_thr'] == 0.3
    assert str(detector[0].parent) not in str(facts)


#: By toolbox: steps of the shipped configs, and others.
BICUBIC = dict(backend='pillow', interpolation='bicubic')
PIPELINES = [
    ('mmdet', dict(type='Resize', scale=(133, 80), keep_ratio=True)),
    ('mmdet', dict(type='Resize', scale=(50, 70))),
    ('mmseg', dict(type='ResizeToMultiple', size_divisor=32)),
    ('mmpretrain', dict(type='ResizeEdge', scale=61)),
    ('mmpretrain', dict(type='ResizeEdge', scale=90, **BICUBIC)),
    ('mmpretrain', dict(type='CenterCrop', crop_size=(33, 80))),
]


@pytest.mark.parametrize('scope, step', PIPELINES)
@pytest.mark.parametrize('size', [(72, 97), (131, 60), (64, 64)])
def test_images_are_prepared_by_the_toolboxes_steps(scope, step, size):
    pytest.importorskip(scope)
    init_default_scope(scope)
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    expected = Compose([step])(dict(img=image, img_shape=size))['img']
    steps, reasons = metadata._steps([step])
    facts = dict(steps=json.loads(json.dumps(steps)), to_rgb=False, mean=[])
    facts['pad'] = dict(size=None, divisor=1, value=0)
    got, shape = run_exported.prepare(image, facts, set())
    assert shape == expected.shape[:2] and not reasons
    assert (got[0].transpose(1, 2, 0) == expected).all()


@pytest.mark.parametrize(
    'step, said',
    [
        (dict(type='LoadImageFromFile', imdecode_backend='tifffile'), 'imdecode_backend=tifffile'),
        (dict(type='LoadImageFromFile', color_type='grayscale'), 'color_type=grayscale'),
        (dict(type='Resize', scale_factor=2.0), r'Resize with scale_factor=2\.0'),
        (dict(type='Resize', scale=8, interpolation='area'), 'interpolation=area'),
        (dict(type='CenterCrop', crop_size=8, auto_pad=True), 'auto_pad=True'),
        (dict(type='ResizeEdge', scale=8, edge='long'), 'edge=long'),
        (dict(type='LoadImageFromFile', to_float32=True), 'to_float32=True'),
        (dict(type='Rotate'), 'the step Rotate'),
    ],
)
def test_other_steps_are_reasons(step, said):
    [reason] = metadata._steps([step, dict(type='LoadAnnotations'), dict(type='PackInputs')])[1]
    assert said.replace('\\', '') in reason
    assert metadata._steps([]) == ([], ['its config has no test pipeline'])


def test_run_length_codes_are_cocos():
    rng = np.random.default_rng(0)
    for size in [(1, 1), (7, 5), (40, 300), (500, 333)]:
        for share in (0, 0.01, 0.5, 1):
            mask = cv2.resize(rng.random((3, 4)), size[::-1]) * 0.5 + rng.random(size) * 0.5 < share
            code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            expected = dict(size=list(size), counts=code['counts'].decode())
            assert run_exported.run_length(mask) == expected


def failed(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_images_that_cannot_be_read_are_named(images, exported, tmp_path, capsys):
    content = {path.name: path.read_bytes() for path in images.iterdir()}
    (tmp_path / 'cut.jpg').write_bytes(content['0.jpg'][:-200])
    (tmp_path / 'cut.png').write_bytes(content['1.png'][:-200])
    (tmp_path / 'empty.png').write_bytes(b'')
    (tmp_path / 'text.jpg').write_text('no image')
    Image.new('RGB', (5000, 1)).save(tmp_path / 'thin.png')
    (tmp_path / 'whole.jpg').write_bytes(content['0.jpg'])
    printed = failed(capsys, exported('detector'), tmp_path, '--out', tmp_path / 'out')
    assert 'error: 5 of 6 files could not be read or predicted, the others are done:' in printed
    for name in (
        'cut.jpg is trunc',
        'cut.png is trunc',
        'empty.png',
        'text.jpg',
        'thin.png: it is so',
    ):
        assert str(tmp_path / name) in printed
    [entry] = json_of(tmp_path / 'out')['images']
    assert entry['file_name'] == str(tmp_path / 'whole.jpg')


def test_files_and_options_that_are_wrong(images, exported, tmp_path, capsys):
    model = exported('detector')
    other = onnx.load(str(model))
    del other.metadata_props[:]
    onnx.save(other, str(tmp_path / 'other.onnx'))
    (tmp_path / 'text.onnx').write_text('text')
    classifier = exported('classifier')
    capsys.readouterr()  # of the exports
    for arguments, said in (
        (
            [exported('detector', 'neck'), images],
            'run by this program: it holds the neck: export with --part model',
        ),
        ([tmp_path / 'other.onnx', images], 'other.onnx does not say how its images are prepared'),
        ([tmp_path / 'text.onnx', images], 'text.onnx cannot be loaded as an ONNX model'),
        ([tmp_path / 'none.onnx', images], 'none.onnx cannot be loaded as an ONNX model'),
        ([model, tmp_path / 'none.jpg'], 'none.jpg: no such file or folder'),
        ([model, tmp_path], 'no images'),
        ([model, images, '--score-thr', 2], '--score-thr must be 0 to 1, but got 2'),
        ([classifier, images, '--score-thr', 1], 'for boxes, which no model of classif'),
    ):
        printed = failed(capsys, *arguments, '--out', tmp_path / 'out')
        assert printed.startswith('error: ') and 'Traceback' not in printed
        assert all(part in printed for part in said.split('.*')), printed
    (tmp_path / 'vis').mkdir()
    Image.new('RGB', (64, 64)).save(tmp_path / 'vis' / 'a.png')
    printed = failed(capsys, model, tmp_path / 'vis' / 'a.png', '--out', tmp_path)
    assert 'would overwrite' in printed
