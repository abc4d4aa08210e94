"""A good checkpoint whose ``meta`` is invalid: it is not used, which is logged, or an error."""

import numpy as np
import pytest
import torch
from toy_models import save_detector, save_segmentor

import cyclemlp_mm.safe_loading  # noqa: F401
from cyclemlp_mm.apis.convert_weights import convert_weights
from cyclemlp_mm.datasets.shapes import CLASSES
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.inference import Predictor
from cyclemlp_mm.weights.whole_model import for_mmengine

NAMES, RGB = ['a', 'b', 'c', 'd'], [(1, 2, 3)] * 4
DEEP = {}
for _ in range(50):
    DEEP = {'a': DEEP}
INVALID = [None, -1, float('nan'), 'x' * 10**5, [3], b'x', torch.ones(2)]
NO_NAMES = [7, 'abcd', [1, 2, 3, 4], [None] * 4, {'a', 'b'}, {'a': 1}, [['a']] * 4, [b'a'], DEEP]
NO_COLOURS = [7, 'coco', [3] * 4, [None] * 4, [(1, 2)] * 4, [(1, 2, 3)], [(300, 0, 0)] * 4, DEEP]
NO_COLOURS += [[('a',) * 3] * 4, [(float('nan'),) * 3] * 4, [(10**30, 0, 0)] * 4]
NO_COLOURS += [[(-1, 0, 0)] * 4, {0: (1, 2, 3)}]


def read(meta):
    return for_mmengine({'state_dict': {}, 'meta': meta}, 'x.pth')['meta']


def test_invalid_parts_are_left_out_and_logged(log_lines):
    def logged():
        lines = ' '.join(line for line in log_lines if 'x.pth: ignored invalid' in line)
        log_lines.clear()
        return lines

    for value in INVALID:
        assert read(value) == {} and 'invalid meta' in logged()
        assert read(dict(dataset_meta=value, epoch=1)) == dict(epoch=1)
        assert 'meta.dataset_meta' in logged()
    for value in NO_NAMES:
        assert read(dict(dataset_meta=dict(classes=value)))['dataset_meta']['classes'] is None
        assert 'meta.dataset_meta.classes' in logged()
        assert read(dict(CLASSES=value))['CLASSES'] is None and 'meta.CLASSES' in logged()
    for value in NO_COLOURS:
        meta = read(dict(dataset_meta=dict(classes=NAMES, palette=value)))
        assert meta['dataset_meta'] == dict(classes=NAMES, palette=None)
        assert 'meta.dataset_meta.palette' in logged()
    for classes in (NAMES, tuple(NAMES), np.array(NAMES)):
        for palette in (RGB, tuple(RGB), [[1, 2, 3]] * 5, np.array(RGB, np.uint8), (1, 2, 3)):
            meta = read(dict(dataset_meta=dict(classes=classes, palette=palette), other=palette))
            assert list(meta['dataset_meta']['classes']) == NAMES
            assert meta['dataset_meta']['palette'][:4] == RGB and meta['other'] is palette
    assert not logged()


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    return {'det': save_detector(folder / 'det'), 'seg': save_segmentor(folder / 'seg')}


def with_parts(models, kind, folder, **parts):
    config, checkpoint = models[kind]
    torch.save({**torch.load(checkpoint, weights_only=False), **parts}, folder / 'x.pth')
    return str(config), str(folder / 'x.pth')


METAS = [
    None,
    dict(dataset_meta={1: 2}),
    dict(CLASSES=NAMES),
    dict(dataset_meta=dict(classes=CLASSES, palette=[('a', 'b', 'c')] * 4)),
    dict(dataset_meta=dict(classes=DEEP, palette=3), cfg=b'x', epoch=DEEP, seed='x', time=[]),
]


@pytest.mark.parametrize('meta', METAS, ids=range(len(METAS)))
def test_the_toolboxes_doors_and_ours(models, meta, tmp_path):
    from mmdet.apis import inference_detector, init_detector
    from mmseg.apis import inference_model, init_model

    files = with_parts(models, 'det', tmp_path, meta=meta, optimizer=DEEP, ema_state_dict='x')
    image = np.zeros((64, 64, 3), np.uint8)
    assert inference_detector(init_detector(*files, device='cpu'), image) is not None
    predictor = Predictor(*files, device='cpu')
    assert predictor.classes in (tuple(CLASSES), tuple(NAMES))
    assert all(0 <= part <= 255 for colour in predictor.palette for part in colour)
    files = with_parts(models, 'seg', tmp_path, meta=meta)
    assert inference_model(init_model(*files, device='cpu'), image) is not None


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
    meta = dict(dataset_meta=names, cfg=DEEP, seed=b'x')
    _, file = with_parts(models, 'det', tmp_path, meta=meta)
    assert convert_weights([file, str(tmp_path / f'y.{suffix}')]).backbone > 40
