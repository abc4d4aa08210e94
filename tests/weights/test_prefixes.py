"""Prefixes of wrappers are found, or the message names them; no file is read in part."""

import warnings

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from published_names import published_state_dict
from torch import nn

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.weights import init_from_checkpoint, install_safe_loading
from cyclemlp_mm.weights.convert import convert
from cyclemlp_mm.weights.whole_model import for_mmengine

BUILD = {
    'cyclemlp': lambda: CycleMLP(
        dict(
            depths=(1, 1, 1, 1),
            widths=(8, 12, 16, 20),
            mlp_ratios=(1, 1, 1, 1),
            reweight=True,
            downsample='conv',
        )
    ),
    'mpvit': lambda: MPViT(
        dict(depths=(1, 1, 1, 1), widths=(8, 16, 24, 32), paths=(2, 2, 2, 2), mlp_ratio=1)
    ),
}
KNOWN = [
    '_orig_mod.',
    'module._orig_mod.',
    '_orig_mod.module.',
    'backbone._orig_mod.',
    '_orig_mod.backbone.',
    'model.',
    'module.model.',
    'model.backbone.',
    'net.backbone.',
    'ema_model.module.',
    'model._orig_mod.backbone._orig_mod.',
    '_fsdp_wrapped_module.backbone.',
]


class Detector(BaseModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(2, 2)


def source(family):
    model = BUILD[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def load(family, path, **kwargs):
    model = BUILD[family]()
    init_from_checkpoint(model, model.published_format, str(path), **kwargs)
    return model


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(tensor, expected) for tensor, expected in pairs)


@pytest.mark.parametrize('family', BUILD)
@pytest.mark.parametrize('prefix', KNOWN)
def test_known_wrappers(prefix, family, tmp_path):
    model = source(family)
    names = {f'{prefix}{name}': tensor for name, tensor in model.state_dict().items()}
    outer = prefix.partition('backbone.')[0] if 'backbone' in prefix else ''
    names[f'{outer}head.weight'], names[f'{outer}head.bias'] = torch.ones(2, 2), torch.ones(2)
    torch.save({'state_dict': names, 'epoch': 3}, tmp_path / 'x.pth')
    assert same(load(family, tmp_path / 'x.pth'), model)
    assert same(load(family, tmp_path / 'x.pth', prefix=prefix), model)
    install_safe_loading()
    whole = Detector(BUILD[family]())  # as load_from, tools/test.py and the inference APIs do
    load_checkpoint(whole, str(tmp_path / 'x.pth'))
    assert same(whole.backbone, model)


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.'])
@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('family', BUILD)
def test_a_backbones_file_loads_into_a_detector_and_into_a_backbone(
    family, wrapper, prefix, tmp_path
):
    install_safe_loading()
    model = source(family)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / 'x.pth')
    detector, backbone = Detector(BUILD[family]()), BUILD[family]()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        content = load_checkpoint(detector, str(tmp_path / 'x.pth'), map_location='cpu')
        load_checkpoint(backbone, str(tmp_path / 'x.pth'), map_location='cpu', strict=True)
    assert content['meta'] == {}  # mmseg's init_model looks for it
    assert same(detector.backbone, model) and same(backbone, model)


def test_other_files_are_unchanged():
    content = {'conv1.weight': torch.ones(1), 'stages.0.blocks.0.bn.weight': torch.ones(1)}
    assert for_mmengine(dict(content), 'x') == content


def test_the_rest_of_the_model_loses_the_outer_prefix():
    names = {f'model.backbone.{n}': t for n, t in source('cyclemlp').state_dict().items()}
    names['model.neck.convs.0.weight'] = torch.ones(1)
    assert 'neck.convs.0.weight' in for_mmengine({'state_dict': names}, 'x')['state_dict']


@pytest.mark.parametrize('key', ['model_ema', 'state_dict_ema', 'net', 'module'])
def test_under_another_key(key, tmp_path):
    model = source('cyclemlp')
    torch.save(
        {key: model.state_dict(), 'epoch': 3, 'optimizer': {'state': {}}}, tmp_path / 'x.pth'
    )
    assert same(load('cyclemlp', tmp_path / 'x.pth'), model)


def test_an_averaged_model(tmp_path):
    model = source('cyclemlp')
    averaged = torch.optim.swa_utils.AveragedModel(Detector(model)).state_dict()
    for content in (averaged, {'ema_state_dict': {'steps': torch.tensor(3), **averaged}}):
        torch.save(content, tmp_path / 'x.pth')
        assert same(load('cyclemlp', tmp_path / 'x.pth'), model)
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), tmp_path / 'x.pth')
    assert same(load('cyclemlp', tmp_path / 'x.pth'), model)


def test_unknown_ones_are_named_with_what_to_set(tmp_path):
    model = source('cyclemlp')
    for prefix in ('encoder.', 'student.0.'):
        torch.save({f'{prefix}{n}': t for n, t in model.state_dict().items()}, tmp_path / 'x.pth')
        with pytest.raises(CheckpointError, match=rf"x\.pth.*prefix='{prefix}'"):
            load('cyclemlp', tmp_path / 'x.pth')
        assert same(load('cyclemlp', tmp_path / 'x.pth', prefix=prefix), model)
    two = {'teacher': model.state_dict(), 'student': source('cyclemlp').state_dict()}
    torch.save(two, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r"prefix='teacher\.' or prefix='student\.'"):
        load('cyclemlp', tmp_path / 'x.pth')
    assert same(load('cyclemlp', tmp_path / 'x.pth', prefix='teacher'), model)


def test_one_tensor_under_two_names(tmp_path):
    names = source('cyclemlp').state_dict()
    names['_orig_mod.stem.proj.bias'] = torch.ones(8)
    torch.save(names, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'two tensors for stem\.proj\.bias'):
        load('cyclemlp', tmp_path / 'x.pth')


def test_numbers_beside_the_tensors(tmp_path):
    model = source('cyclemlp')
    torch.save({**model.state_dict(), 'num_updates': 7, 'note': 'text'}, tmp_path / 'x.pth')
    assert same(load('cyclemlp', tmp_path / 'x.pth'), model)


def test_converted_whatever_the_prefix(tmp_path):
    model = source('cyclemlp')
    names = published_state_dict(model)
    torch.save({f'model.{n}': t for n, t in names.items()}, tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert done.source == 'published' and done.rest == 0
    assert same(load('cyclemlp', tmp_path / 'y.pth'), model)
