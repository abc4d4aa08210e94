"""A good checkpoint whose ``meta`` is invalid: it is not used, which is logged, or an error."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from toy_models import save_detector, save_segmentor

import cyclemlp_mm.safe_loading  # noqa: F401
from cyclemlp_mm.apis.convert_weights import convert_weights
from cyclemlp_mm.apis.infer import infer
from cyclemlp_mm.datasets.shapes import CLASSES
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.inference import Predictor
from cyclemlp_mm.weights.whole_model import for_mmengine

NAMES, RGB = ['a', 'b', 'c', 'd'], [(1, 2, 3)] * 4
DEEP = {}
for _ in range(50):
    DEEP = {'a': DEEP}
INVALID = [None, -1, float('nan'), '', 'x' * 10**5, [3], b'x', torch.ones(2), {1: 2}, DEEP]
NO_NAMES = [7, 'abcd', [1, 2, 3, 4], [None] * 4, {'a', 'b'}, {'a': 1}, [['a']] * 4, [b'a'], DEEP]
NO_COLOURS = [7, 'coco', [3] * 4, [None] * 4, [(1, 2)] * 4, [(1, 2, 3)], [(300, 0, 0)] * 4, DEEP]
NO_COLOURS += [[('a',) * 3] * 4, [(float('nan'),) * 3] * 4, [(10**30, 0, 0)] * 4]
NO_COLOURS += [[(-1, 0, 0)] * 4, {0: (1, 2, 3)}]


def read(meta):
    return for_mmengine({'state_dict': {}, 'meta': meta}, 'x.pth')['meta']


def logged(log_lines):
    return ' '.join(line for line in log_lines if 'x.pth' in line)


@pytest.mark.parametrize('value', INVALID, ids=lambda value: type(value).__name__)
def test_parts_of_another_kind(value, log_lines):
    meta = read(value)
    assert isinstance(meta, dict)
    meta = read(dict(dataset_meta=value, epoch=1))
    assert meta['epoch'] == 1 and isinstance(meta.get('dataset_meta', {}), dict)
    if not isinstance(value, dict):
        assert 'x.pth: ignored invalid meta' in logged(log_lines)
        assert 'x.pth: ignored invalid meta.dataset_meta' in logged(log_lines)


@pytest.mark.parametrize('value', NO_NAMES, ids=lambda value: type(value).__name__)
def test_invalid_names(value, log_lines):
    assert read(dict(dataset_meta=dict(classes=value)))['dataset_meta']['classes'] is None
    assert read(dict(CLASSES=value))['CLASSES'] is None
    assert 'meta.dataset_meta.classes' in logged(log_lines)
    assert 'meta.CLASSES' in logged(log_lines)


@pytest.mark.parametrize('value', NO_COLOURS, ids=lambda value: type(value).__name__)
def test_invalid_colours(value, log_lines):
    meta = read(dict(dataset_meta=dict(classes=NAMES, palette=value)))
    assert meta['dataset_meta'] == dict(classes=NAMES, palette=None)
    assert 'meta.dataset_meta.palette' in logged(log_lines)


@pytest.mark.parametrize('classes', [NAMES, tuple(NAMES), np.array(NAMES)], ids=type)
@pytest.mark.parametrize(
    'palette', [RGB, tuple(RGB), [[1, 2, 3]] * 5, np.array(RGB), np.array(RGB, np.uint8), (1, 2, 3)]
)
def test_valid_ones_stay(classes, palette, log_lines):
    meta = read(dict(dataset_meta=dict(classes=classes, palette=palette), other=palette))
    assert list(meta['dataset_meta']['classes']) == NAMES
    assert meta['dataset_meta']['palette'][:4] == RGB and meta['other'] is palette
    assert not logged(log_lines)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    Image.new('RGB', (64, 64)).save(folder / 'x.png')
    return {'det': save_detector(folder / 'det'), 'seg': save_segmentor(folder / 'seg')}, folder


def with_parts(models, kind, folder, **parts):
    config, checkpoint = models[0][kind]
    torch.save({**torch.load(checkpoint, weights_only=False), **parts}, folder / 'x.pth')
    return str(config), str(folder / 'x.pth')


METAS = [
    None,
    dict(dataset_meta=None),
    dict(dataset_meta={1: 2}),
    dict(CLASSES=NAMES),
    dict(dataset_meta=dict(classes=CLASSES, palette=[('a', 'b', 'c')] * 4)),
    dict(dataset_meta=dict(classes=DEEP, palette=3), cfg=b'x', epoch=DEEP, seed='x', time=[]),
]


@pytest.mark.parametrize('meta', METAS, ids=range(len(METAS)))
def test_mmdets_doors_and_ours(models, meta, tmp_path):
    from mmdet.apis import inference_detector, init_detector

    files = with_parts(models, 'det', tmp_path, meta=meta, optimizer=DEEP, ema_state_dict='x')
    model = init_detector(*files, device='cpu')
    assert inference_detector(model, np.zeros((64, 64, 3), np.uint8)) is not None
    predictor = Predictor(*files, device='cpu')
    assert predictor.classes in (tuple(CLASSES), tuple(NAMES))
    assert all(0 <= part <= 255 for colour in predictor.palette for part in colour)


@pytest.mark.parametrize('meta', METAS, ids=range(len(METAS)))
def test_mmsegs_door(models, meta, tmp_path):
    from mmseg.apis import inference_model, init_model

    model = init_model(*with_parts(models, 'seg', tmp_path, meta=meta), device='cpu')
    assert inference_model(model, np.zeros((64, 64, 3), np.uint8)) is not None


def test_a_segmentors_palette_in_the_tool(models, tmp_path):
    names = ('sky', 'road', 'tree')
    meta = dict(dataset_meta=dict(classes=names, palette=[(300, -1, 0)] * 3))
    files = with_parts(models, 'seg', tmp_path, meta=meta)
    infer([*files, str(models[1] / 'x.png'), '--out', str(tmp_path / 'out'), '--device', 'cpu'])
    assert list((tmp_path / 'out/vis').iterdir())


@pytest.mark.parametrize('state_dict', [None, '', 3, [], {}, {1: 2}, {'x': b'x'}], ids=repr)
def test_no_state_dict(models, state_dict, tmp_path):
    files = with_parts(models, 'det', tmp_path, state_dict=state_dict)
    with pytest.raises(CheckpointError, match=r'x\.pth'):
        Predictor(*files, device='cpu')
    with pytest.raises(CheckpointError, match=r'x\.pth'):
        convert_weights([files[1], str(tmp_path / 'y.pth')])


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('names', [DEEP, 3, dict(classes=NAMES, palette='x', more={(1, 2): 3})])
def test_conversion(models, names, suffix, tmp_path):
    _, file = with_parts(
        models, 'det', tmp_path, meta=dict(dataset_meta=names, cfg=DEEP, seed=b'x')
    )
    done = convert_weights([file, str(tmp_path / f'y.{suffix}')])
    assert done.backbone > 40
    json.dumps(done.arch)
