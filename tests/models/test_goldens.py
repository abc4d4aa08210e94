"""Outputs of the published implementations, as far as ``tests/data`` holds them, in every clone.

A file there holds a weighted sum over the pixels of each channel, and the first 100 logits.
``python tests/models/test_goldens.py`` writes the files, from ``../shared/parity`` and mmpretrain.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # where this file is run as a program

from parity_rule import fill, filled, golden, image  # noqa: E402
from plain_mpvit import PlainMPViT  # noqa: E402
from published_names import published_state_dict  # noqa: E402

from cyclemlp_mm.models import CycleMLP, MPViT  # noqa: E402

DATA = TESTS / 'data'
HEIGHT, WIDTH = 64, 96
REPMLP = dict(channels=[8, 16, 32, 64], depths=[1, 2, 1, 1], sharesets_nums=[1, 4, 8, 16])


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


def assert_golden(name, got):
    expected = np.load(DATA / f'{name}.npz')
    assert set(got) == set(expected)
    for key, ours in got.items():
        assert ours.shape == expected[key].shape
        assert abs(ours - expected[key]).max() <= 1e-5 * abs(expected[key]).max(), key


def from_file(state, path, **cfg):
    """A backbone that has read these weights from a file of the published format."""
    torch.save(state, path)
    model = MODELS.build(dict(cfg, init_cfg=dict(type='Pretrained', checkpoint=str(path))))
    model.init_weights()
    return model.eval()


@torch.no_grad()
def test_cyclemlp_b1(tmp_path):
    with torch.device('meta'):
        models = [CycleMLP('b1'), CycleMLP('b1', out_indices=(3,))]
    dense, classifier = (
        filled(published_state_dict(model, classes)) for model, classes in zip(models, (None, 1000))
    )
    pixels = torch.from_numpy(image(HEIGHT, WIDTH))
    levels = from_file(dense, tmp_path / 'dense.pth', type='CycleMLP', arch='b1')(pixels)
    model = from_file(
        classifier, tmp_path / 'cls.pth', type='CycleMLP', arch='b1', out_indices=(3,)
    )
    pooled = model(pixels)[0].mean(dim=(2, 3))
    logits = pooled @ classifier['head.weight'].T + classifier['head.bias']
    assert_golden('cyclemlp_b1', summary(levels, logits))


@torch.no_grad()
def test_mpvit_tiny(tmp_path):
    with torch.device('meta'):
        plain = PlainMPViT(MPViT.arch_zoo['tiny'], 1000)
    state = filled(plain.state_dict(keep_vars=True))
    model = from_file(state, tmp_path / 'published.pth', type='MPViT', arch='tiny')
    levels = model(torch.from_numpy(image(HEIGHT, WIDTH)))
    pooled = levels[-1].mean(dim=(2, 3))
    logits = pooled @ state['cls_head.cls.weight'].T + state['cls_head.cls.bias']
    assert_golden('mpvit_tiny', summary(levels, logits))


def mmpretrains_repmlp():
    module = pytest.importorskip('mmpretrain.models.backbones.repmlp')
    model = module.RepMLPNet(REPMLP, img_size=HEIGHT, out_indices=(3,)).eval()
    model.load_state_dict(filled(model.state_dict(keep_vars=True)))
    return model


@torch.no_grad()
def test_repmlp(tmp_path):
    state = mmpretrains_repmlp().state_dict()
    model = from_file(
        state,
        tmp_path / 'zoo.pth',
        type='DenseRepMLPNet',
        arch=REPMLP,
        img_size=HEIGHT,
        out_indices=(3,),
    )
    levels = model(torch.from_numpy(image(HEIGHT, HEIGHT)))
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
