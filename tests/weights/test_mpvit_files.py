"""Published MPViT files, whole and hurt."""

import pytest
import torch
from mpvit_cases import TINY
from plain_mpvit import PlainMPViT

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import MPViT
from cyclemlp_mm.weights.whole_model import for_mmengine


def published():
    return PlainMPViT(TINY, classes=5).state_dict()


def load(content, tmp_path, **kwargs):
    torch.save(content, tmp_path / 'file.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'))
    model = MPViT(TINY, init_cfg=cfg, **kwargs)
    model.init_weights()
    return model


@pytest.mark.parametrize(
    'wrap',
    [
        dict,
        lambda s: {'model': s},
        lambda s: {'state_dict': {f'module.{n}': t for n, t in s.items()}},
        lambda s: {'state_dict': {f'backbone.{n}': t for n, t in s.items()}},
    ],
    ids=['bare', 'model', 'module', 'backbone'],
)
def test_loads_completely_and_says_so(wrap, tmp_path, log_lines):
    state = published()
    model = load(wrap(state), tmp_path)
    total = len(model.state_dict())
    [line] = [line for line in log_lines if 'loaded' in line]
    assert f'loaded {total} of {total} tensors' in line and 'classifier (2)' in line
    first = state['mhca_stages.1.mhca_blks.2.crpe.conv_list.2.weight']
    assert torch.equal(model.stages[1].paths[2].relative[2].weight, first)


def test_fewer_stages(tmp_path, log_lines):
    load(published(), tmp_path, out_indices=(0, 1))
    assert any('stages after the last returned level' in line for line in log_lines)


def test_our_own_file(tmp_path):
    ours = MPViT(TINY)
    model = load(ours.state_dict(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters()))


def lose(state):
    del state['mhca_stages.1.mhca_blks.0.MHCA_layers.1.factoratt_crpe.qkv.bias']


def unshare(state):
    name = 'mhca_stages.1.mhca_blks.0.MHCA_layers.1.factoratt_crpe.crpe.conv_list.0.bias'
    state[name] = state[name] + 1


def add(state):
    state['mhca_stages.0.mhca_blks.0.extra.weight'] = torch.zeros(3)


def cut(state):
    state['stem.1.bn.running_var'] = state['stem.1.bn.running_var'][:-1]


@pytest.mark.parametrize(
    'hurt, message',
    [
        (lose, r'1 of \d+ tensors are missing.*stages.1.paths.0.layers.1.qkv.bias'),
        (unshare, 'layers of a path share this tensor'),
        (add, '1 are unknown.*extra'),
        (cut, 'another shape'),
    ],
)
def test_what_does_not_fit_is_refused(hurt, message, tmp_path):
    state = published()
    hurt(state)
    with pytest.raises(CheckpointError, match=message):
        load(state, tmp_path)


def test_another_arch_is_named(tmp_path):
    state = PlainMPViT(dict(TINY, depths=(1, 1, 1, 1))).state_dict()
    with pytest.raises(CheckpointError, match=r'depths 1-1-1-1.*depths 1-2-1-1'):
        load(state, tmp_path)


def test_a_whole_classifier_for_mmengine():
    whole = for_mmengine({'model': published()}, 'mpvit.pth')['state_dict']
    names = {f'backbone.{name}' for name in MPViT(TINY).state_dict()}
    assert set(whole) == names | {'head.fc.weight', 'head.fc.bias'}
