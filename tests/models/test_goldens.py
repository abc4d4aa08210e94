"""Outputs of the published implementations, reproduced through files of the published formats.

``tests/data`` holds a weighted sum over the pixels of each channel, and the first 100 logits, for
every clone; ``../shared/parity`` whole outputs. ``python tests/models/test_goldens.py`` writes the
former, from the latter and mmpretrain.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # where this file is run as a program

import families  # noqa: E402
from parity_rule import fill, filled, golden, image, published_tensors  # noqa: E402
from paths import PARITY, needs_parity  # noqa: E402
from plain_mpvit import PlainMPViT  # noqa: E402
from published_names import published_state_dict  # noqa: E402

from cyclemlp_mm.models import CycleMLP, MPViT  # noqa: E402

DATA = TESTS / 'data'
REPMLP = dict(families.REPMLP, depths=[1, 2, 1, 1])
HEIGHT, WIDTH = 64, 96
NAMES = sorted(path.stem.removeprefix('golden_') for path in PARITY.glob('golden_*.npz'))
NAMES = [name for name in NAMES if name.startswith(('cyclemlp_', 'mpvit_'))]


def summary(levels, logits=None):
    """Name to array: a sum over pixels, each with a weight of its own, and some logits."""
    kept = {}
    for i, level in enumerate(map(np.asarray, levels)):
        # One image of CycleMLP has enough channels for a small file.
        weights = fill('pixels', level.shape[2:])
        kept[f'level{i}'] = np.einsum('bchw,hw->bc', level[:1].astype(float), weights)
    if logits is not None:
        kept['logits'] = np.asarray(logits)[:1, :100]
    return {name: values.astype(np.float32) for name, values in kept.items()}


def assert_close(got, expected):
    assert got.keys() == expected.keys()
    for key, ours in got.items():
        ours, theirs = np.asarray(ours), expected[key]
        assert ours.shape == theirs.shape
        assert abs(ours - theirs).max() <= 1e-5 * abs(theirs).max(), key


def assert_golden(name, got):
    assert_close(got, dict(np.load(DATA / f'{name}.npz')))


def from_file(state, path, **cfg):
    """A backbone that has read these weights from a file of the published format."""
    torch.save(state, path)
    model = MODELS.build(dict(cfg, init_cfg=dict(type='Pretrained', checkpoint=str(path))))
    model.init_weights()
    return model.eval()


def logits_of(level, state, head):
    return level.mean(dim=(2, 3)) @ state[f'{head}.weight'].T + state[f'{head}.bias']


@needs_parity
@pytest.mark.parametrize('name', NAMES or ['none found'])
@torch.no_grad()
def test_equals_the_published_outputs(name, tmp_path, log_lines):
    family, arch, *use = name.split('_')
    expected, pixels = golden(name)
    expected = {k: v for k, v in expected.items() if k not in ('height', 'width', 'batch')}
    state = published_tensors(name)
    cfg = dict(type='MPViT' if family == 'mpvit' else 'CycleMLP', arch=arch)
    if use == ['cls']:
        cfg['out_indices'] = (3,)
    model = from_file({'model': state}, tmp_path / 'published.pth', **cfg)
    if family == 'mpvit':
        total = len(model.state_dict())
        assert any(f'loaded {total} of {total} tensors' in line for line in log_lines)
    levels = model(torch.from_numpy(pixels))
    got = {} if use == ['cls'] else {f'level{i}': level for i, level in enumerate(levels)}
    if use != ['dense']:
        head = 'cls_head.cls' if family == 'mpvit' else 'head'
        got['logits'] = logits_of(levels[-1], state, head)
    assert_close(got, expected)


@torch.no_grad()
def test_cyclemlp_b1(tmp_path):
    with torch.device('meta'):
        models = [CycleMLP('b1'), CycleMLP('b1', out_indices=(3,))]
    dense, classifier = (
        filled(published_state_dict(model, classes)) for model, classes in zip(models, (None, 1000))
    )
    pixels = torch.from_numpy(image(HEIGHT, WIDTH))
    cfg = dict(type='CycleMLP', arch='b1')
    levels = from_file(dense, tmp_path / 'dense.pth', **cfg)(pixels)
    model = from_file(classifier, tmp_path / 'cls.pth', **cfg, out_indices=(3,))
    logits = logits_of(model(pixels)[0], classifier, 'head')
    assert_golden('cyclemlp_b1', summary(levels, logits))


@torch.no_grad()
def test_mpvit_tiny(tmp_path):
    with torch.device('meta'):
        plain = PlainMPViT(MPViT.arch_zoo['tiny'], 1000)
    state = filled(plain.state_dict(keep_vars=True))
    model = from_file(state, tmp_path / 'published.pth', type='MPViT', arch='tiny')
    levels = model(torch.from_numpy(image(HEIGHT, WIDTH)))
    assert_golden('mpvit_tiny', summary(levels, logits_of(levels[-1], state, 'cls_head.cls')))


def mmpretrains_repmlp():
    module = pytest.importorskip('mmpretrain.models.backbones.repmlp')
    model = module.RepMLPNet(REPMLP, img_size=HEIGHT, out_indices=(3,)).eval()
    model.load_state_dict(filled(model.state_dict(keep_vars=True)))
    return model


@torch.no_grad()
def test_repmlp(tmp_path):
    state = mmpretrains_repmlp().state_dict()
    cfg = dict(type='DenseRepMLPNet', arch=REPMLP, img_size=HEIGHT, out_indices=(3,))
    levels = from_file(state, tmp_path / 'zoo.pth', **cfg)(torch.from_numpy(image(HEIGHT, HEIGHT)))
    assert_golden('repmlp', summary(levels))


@torch.no_grad()
def write():
    levels = [f'level{i}' for i in range(4)]
    dense, mpvit = golden('cyclemlp_b1_dense')[0], golden('mpvit_tiny')[0]
    repmlp = mmpretrains_repmlp()(torch.from_numpy(image(HEIGHT, HEIGHT)))
    for name, content in {
        'cyclemlp_b1': summary([dense[i] for i in levels], golden('cyclemlp_b1_cls')[0]['logits']),
        'mpvit_tiny': summary([mpvit[i] for i in levels], mpvit['logits']),
        'repmlp': summary(repmlp),
    }.items():
        np.savez_compressed(DATA / f'{name}.npz', **content)


if __name__ == '__main__':
    write()
