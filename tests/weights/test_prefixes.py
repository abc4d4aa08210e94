"""Prefixes of wrappers are found, or the message names them; no file is read in part."""

import warnings

import pytest
import torch
from families import FAMILIES
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from published_names import published_state_dict
from test_loading import source
from torch import nn

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.weights import PublishedFormat, init_from_checkpoint, install_safe_loading
from cyclemlp_mm.weights.convert import convert
from cyclemlp_mm.weights.formats import PaddleStateDict
from cyclemlp_mm.weights.published import FAMILIES as FORMATS
from cyclemlp_mm.weights.published import has_name
from cyclemlp_mm.weights.whole_model import for_mmengine

KNOWN = [
    *('', 'module.', 'backbone.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'),
    *('backbone._orig_mod.', '_orig_mod.backbone.', 'model.', 'module.model.', 'model.backbone.'),
    *('net.backbone.', 'ema_model.module.', 'model._orig_mod.backbone._orig_mod.'),
    '_fsdp_wrapped_module.backbone.',
]


class Detector(BaseModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(2, 2)


@pytest.fixture
def file(tmp_path):
    """Its call writes a file, and returns the path."""

    def write(content):
        torch.save(content, tmp_path / 'x.pth')
        return str(tmp_path / 'x.pth')

    return write


def load(path, family='reweighted', **kwargs):
    model = FAMILIES[family]()
    init_from_checkpoint(model, model.published_format, path, **kwargs)
    return model


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(tensor, expected) for tensor, expected in pairs)


@pytest.mark.few(15)
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('prefix', KNOWN)
def test_known_wrappers(prefix, family, file):
    model = source(family)
    names = {f'{prefix}{name}': tensor for name, tensor in model.state_dict().items()}
    outer = prefix.partition('backbone.')[0] if 'backbone' in prefix else ''
    head = {f'{outer}head.weight': torch.ones(2, 2), f'{outer}head.bias': torch.ones(2)}
    path = file({'state_dict': names | head, 'epoch': 3})
    assert same(load(path, family), model)
    assert same(load(path, family, prefix=prefix), model)
    install_safe_loading()
    whole = Detector(FAMILIES[family]())  # as load_from, tools/test.py and the inference APIs do
    load_checkpoint(whole, path)
    assert same(whole.backbone, model)
    for content in (names, {'model': names}, {'state_dict': names}):  # the backbone alone
        path = file(content)
        whole, backbone = Detector(FAMILIES[family]()), FAMILIES[family]()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            loaded = load_checkpoint(whole, path, map_location='cpu')
            load_checkpoint(backbone, path, map_location='cpu', strict=True)
        assert loaded['meta'] == {}  # mmseg's init_model looks for it
        assert same(whole.backbone, model) and same(backbone, model)


def test_names_that_for_mmengine_changes():
    content = {'conv1.weight': torch.ones(1), 'stages.0.blocks.0.bn.weight': torch.ones(1)}
    assert for_mmengine(dict(content), 'x') == content  # not of a family of ours
    names = {f'model.backbone.{n}': t for n, t in source().state_dict().items()}
    names['model.neck.convs.0.weight'] = torch.ones(1)
    assert 'neck.convs.0.weight' in for_mmengine({'state_dict': names}, 'x')['state_dict']
    names = published_state_dict(source(), classifier=3)
    for content in ({'model': names}, PaddleStateDict(names)):
        whole = for_mmengine(content, 'x')['state_dict']
        assert {'backbone.norm3.weight', 'head.fc.weight', 'head.fc.bias'} <= set(whole)


def test_a_new_family_is_known_by_its_format(monkeypatch):
    monkeypatch.setitem(FORMATS, 'Toy', None)  # taken out again after the test
    PublishedFormat(
        family='Toy',
        example='patches.weight',
        our_example='stem.toy',
        to_ours=lambda names: {
            n.replace('patches.weight', 'stem.toy'): t for n, t in names.items()
        },
        is_published=has_name(r'patches\..*'),
        is_certain=has_name(r'patches\..*'),
    )
    names = {f'module.{name}': torch.ones(1) for name in ('patches.weight', 'head.bias')}
    whole = for_mmengine({'model': names}, 'x')['state_dict']
    assert set(whole) == {'backbone.stem.toy', 'head.fc.bias'}


@pytest.mark.parametrize('key', ['model_ema', 'state_dict_ema', 'net', 'module'])
def test_under_another_key(key, file):
    model = source()
    state = {**model.state_dict(), 'num_updates': 7, 'note': 'text'}
    path = file({key: model.state_dict(), 'epoch': 3, 'optimizer': {'state': {}}})
    assert same(load(path), model)
    assert same(load(file({'model': state})), model)  # numbers and texts are left out


def test_an_averaged_model(file):
    model = source()
    averaged = torch.optim.swa_utils.AveragedModel(Detector(model)).state_dict()
    alone = torch.optim.swa_utils.AveragedModel(model).state_dict()
    for content in (averaged, {'ema_state_dict': {'steps': torch.tensor(3), **averaged}}, alone):
        assert same(load(file(content)), model)


def test_unknown_ones_are_named_with_what_to_set(file):
    model = source()
    for prefix in ('encoder.', 'student.0.', 'module.encoder.'):
        path = file({f'{prefix}{n}': t for n, t in model.state_dict().items()})
        shown = prefix.removeprefix('module.')
        with pytest.raises(CheckpointError, match=rf"x\.pth.*None of its.*prefix='{shown}'"):
            load(path)
        with pytest.raises(CheckpointError, match=r"no name that begins with prefix='net\.'"):
            load(path, prefix='net.')
        for named in {prefix, shown, shown[:-1]}:
            assert same(load(path, prefix=named), model)
    path = file({'teacher': model.state_dict(), 'student': source().state_dict()})
    with pytest.raises(CheckpointError, match=r"prefix='teacher\.' or prefix='student\.'"):
        load(path)
    assert same(load(path, prefix='teacher'), model)


def test_one_tensor_under_two_names(file):
    path = file({**source().state_dict(), '_orig_mod.stem.proj.bias': torch.ones(8)})
    with pytest.raises(CheckpointError, match=r'two tensors for stem\.proj\.bias'):
        load(path)


def test_converted_whatever_the_prefix(file, tmp_path):
    model = source()
    path = file({f'model.{n}': t for n, t in published_state_dict(model).items()})
    done = convert(path, tmp_path / 'y.pth')
    assert done.source == 'published' and done.rest == 0
    assert same(load(str(tmp_path / 'y.pth')), model)
