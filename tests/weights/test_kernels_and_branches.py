"""Weights of another pseudo-kernel or other branches are refused by name, whoever loads them."""

import itertools
import re

import pytest
import torch
from families import CYCLE
from mmengine.runner import load_checkpoint
from published_names import published_state_dict
from torch import nn

from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.ops import CycleFC
from cyclemlp_mm.weights import read_checkpoint
from cyclemlp_mm.weights.convert import convert
from cyclemlp_mm.weights.cyclemlp import CYCLEMLP_FORMAT, to_published

SUMMED = dict(CYCLE, reweight=False)
USUAL = 'kernel_size 3, branches h-w-c'
#: Settings, and what messages call them.
ABLATED = {
    'kernel_size 1, branches h-w-c': dict(kernel_size=1),
    'kernel_size 5, branches h-w-c': dict(kernel_size=5),
    'kernel_size 7, branches h-w-c': dict(kernel_size=7),
    'kernel_size 3, branches h-w': dict(branches=('h', 'w')),
    'kernel_size 5, branches w-c': dict(kernel_size=5, branches=('w', 'c')),
    'branches c': dict(branches=('c',)),
}
every_ablation = pytest.mark.parametrize('name', ABLATED)


def build(name, row=CYCLE, **options):
    model = CycleMLP(dict(row, **ABLATED.get(name, {})), **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize('row', [CYCLE, SUMMED], ids=['reweighted', 'summed'])
@every_ablation
@pytest.mark.parametrize('classifier', [None, 7])
def test_published_weights_are_refused_by_name(name, row, classifier, tmp_path):
    path = tmp_path / 'published.pth'
    torch.save(published_state_dict(build(USUAL, row), classifier), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = build(name, row, init_cfg=init_cfg)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    said = rf'holds .*, {USUAL}; the model has .*, {name}: is it the right arch\?'
    with pytest.raises(CheckpointError, match=said):
        model.init_weights()
    assert_same(model.state_dict(), before)
    CycleMLP(row, init_cfg=init_cfg).init_weights()


@every_ablation
def test_a_paddle_port_is_refused_by_name(name):
    paddle = CYCLEMLP_FORMAT.from_paddle(published_state_dict(build(USUAL)))
    ours = CYCLEMLP_FORMAT.to_ours({n: t for n, t in paddle.items() if 'offset' not in n})
    with pytest.raises(CheckpointError, match=f'{USUAL}; the model has .*{name}'):
        build(name).check_fit(ours, 'x.pdparams')


@pytest.mark.parametrize('one, other', itertools.permutations([USUAL, *ABLATED], 2))
def test_every_ordered_pair(one, other):
    """Through our check, the one of tests and resumed trainings, and PyTorch's own."""
    model, state_dict = build(one), build(other).state_dict()
    with pytest.raises(CheckpointError, match=f'holds .*{other}; the model has .*{one}'):
        model.check_fit(state_dict, 'x.pth')
    whole = {f'backbone.{name}': tensor for name, tensor in state_dict.items()}
    with pytest.raises(CheckpointError, match=r'x\.pth does not fit'):
        compare(nn.ModuleDict({'backbone': model}), whole, 'x.pth', True)
    with pytest.raises(RuntimeError, match=r'Error\(s\) in loading state_dict'):
        model.load_state_dict(state_dict)


@pytest.mark.parametrize('change', ['5 taps', 'a bias'])
def test_a_layer_that_was_exchanged_counts(change, tmp_path):
    model = build(USUAL)
    mixer = model.stages[0][0].mixer
    if change == '5 taps':
        mixer.sfc_w, named = CycleFC(8, 8, (5, 1)), r'kernel_size 3-5.*sfc_w\.taps'
    else:
        mixer.mlp_c, named = nn.Linear(8, 8), r'1 of 93 tensors are missing.*mlp_c\.bias'
    torch.save(published_state_dict(build(USUAL)), tmp_path / 'published.pth')
    published = CYCLEMLP_FORMAT.to_ours(torch.load(tmp_path / 'published.pth'))
    with pytest.raises(CheckpointError, match=named):
        model.check_fit(published, 'x.pth')
    with pytest.raises(CheckpointError, match='does not fit'):
        build(USUAL).check_fit(model.state_dict(), 'x.pth')


@every_ablation
def test_own_files_load_whatever_they_are_wrapped_in(name, tmp_path):
    model = build(name)
    whole = {f'backbone.{n}': t for n, t in model.state_dict().items()}
    whole['head.fc.weight'] = torch.ones(7, 24)
    for content in (model.state_dict(), dict(state_dict=whole, meta={})):
        torch.save(content, tmp_path / 'own.pth')
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'own.pth'))
        other = build(name, init_cfg=init_cfg)
        other.init_weights()
        assert_same(other.state_dict(), model.state_dict())
        other = build(name)
        load_checkpoint(other, str(tmp_path / 'own.pth'), revise_keys=[(r'^backbone\.', '')])
        assert_same(other.state_dict(), model.state_dict())


@every_ablation
def test_the_converter(name, tmp_path):
    model = build(name)
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    done = convert(tmp_path / 'own.pth', tmp_path / 'own.safetensors')
    settings = ABLATED[name]
    assert done.source == 'ours' and done.arch.startswith('custom (depths 1-1-1-1')
    assert ('kernel_size' in done.arch) == ('kernel_size' in settings)
    assert ('branches' in done.arch) == ('branches' in settings)
    convert(tmp_path / 'own.safetensors', tmp_path / 'back.pth')
    assert_same(read_checkpoint(tmp_path / 'back.pth')['state_dict'], model.state_dict())
    said = f'published files have {USUAL}, but these weights have {name}: write them with --to ours'
    with pytest.raises(CheckpointError, match=rf'own\.pth: {said}'):
        convert(tmp_path / 'own.pth', tmp_path / 'published.pth', 'published')
    assert not (tmp_path / 'published.pth').exists()
    with pytest.raises(CheckpointError, match=said):
        to_published(model.state_dict())


def test_the_converter_refuses_an_even_kernel(tmp_path):
    state_dict = build('kernel_size 5, branches h-w-c').state_dict()
    four = {n: t[:4] if n.endswith('.taps') else t for n, t in state_dict.items()}
    torch.save(four, tmp_path / 'own.pth')
    with pytest.raises(CheckpointError, match='of no CycleMLP: arch kernel_size must be an odd'):
        convert(tmp_path / 'own.pth', tmp_path / 'new.pth')


def test_taps_are_the_offsets():
    model = CycleMLP(dict(CYCLE, kernel_size=5))
    found = [tensor.tolist() for name, tensor in model.state_dict().items() if 'taps' in name]
    assert found == [[0, 1, 2, -2, -1]] * 8
    assert re.search('kernel_size 5', CYCLEMLP_FORMAT.describe(model.state_dict()))
