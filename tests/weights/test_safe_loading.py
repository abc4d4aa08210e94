"""What changes mmengine's loader, and what other models' files may hold then."""

import argparse
import sys
from collections import OrderedDict

import pytest
import torch
from families import MPVIT, REPMLP
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from plain_mpvit import PlainMPViT
from toy_models import ARCH

from cyclemlp_mm.apis.convert_weights import convert_weights
from cyclemlp_mm.apis.prepare import take_classes_of
from cyclemlp_mm.engine import configs_dir
from cyclemlp_mm.engine.runner.resume import find_newest
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights import (
    allow_unsafe_loading,
    install_safe_loading,
    read_before_loading,
    read_checkpoint,
)
from cyclemlp_mm.weights.mmengine_loader import load_from_path


def test_configs_install_it_for_files_and_urls(monkeypatch):
    schemes = dict.fromkeys(CheckpointLoader._schemes, print)
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(schemes))
    monkeypatch.delitem(sys.modules, 'cyclemlp_mm.safe_loading', raising=False)
    Config.fromfile(configs_dir() / 'retinanet_cyclemlp_demo.py')
    ours = dict.fromkeys(['', 'http://', 'https://'], load_from_path)
    assert CheckpointLoader._schemes == schemes | ours


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    install_safe_loading()


@pytest.mark.parametrize('wrapper', ['state_dict', None])
def test_other_models_may_hold_what_they_like(installed, wrapper, tmp_path):
    model, args, path = torch.nn.Linear(2, 2), argparse.Namespace(lr=0.1), tmp_path / 'other.pth'
    for entry in (3, 'text', None, [1], {'a': 1}, torch.Size([1])):
        state = OrderedDict(model.state_dict(), num_updates=entry)
        torch.save({wrapper: state, 'args': args} if wrapper else state, path)
        content = CheckpointLoader.load_checkpoint(str(path))
        read = content[wrapper] if wrapper else content
        assert read['num_updates'] == entry and torch.equal(read['weight'], model.weight)
        if wrapper:
            assert content['args'] == args
            load_checkpoint(torch.nn.Linear(2, 2), str(path))


def test_a_bare_state_dict_keeps_the_versions_of_its_modules(installed, tmp_path):
    state = torch.nn.BatchNorm2d(2).state_dict()
    torch.save(state, tmp_path / 'bn.pth')
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'bn.pth'))
    assert content._metadata['']['version'] == state._metadata['']['version'] == 2


def repmlp_of_mmpretrain():
    module = pytest.importorskip('mmpretrain.models.backbones.repmlp')
    return module.RepMLPNet(REPMLP, img_size=64)


@pytest.mark.parametrize('inside', [None, 'backbone'])
@pytest.mark.parametrize('wrapper', ['state_dict', None])
@pytest.mark.parametrize(
    'build',
    [repmlp_of_mmpretrain, lambda: PlainMPViT(MPVIT), lambda: PlainMPViT(MPVIT, 5)],
    ids=['repmlp', 'mpvit', 'classifier'],
)
def test_another_class_with_our_names_loads_its_own_file(
    installed, build, wrapper, inside, tmp_path
):
    trained, model = build(), build()
    for tensor in trained.state_dict().values():
        tensor.fill_(2)
    if inside:
        trained, model = (torch.nn.ModuleDict({inside: net}) for net in (trained, model))
    state = trained.state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / 'theirs.pth')
    load_checkpoint(model, str(tmp_path / 'theirs.pth'), strict=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('place', ['message_hub', 'meta'])
def test_a_config_text_is_not_run_by_an_inferencer(installed, place, tmp_path):
    infer = pytest.importorskip('mmengine.infer')
    mark = tmp_path / 'was_run'
    code = f'import os\nos.mkdir({str(mark)!r})\nmodel = dict()\n'
    content = dict(state_dict=torch.nn.Linear(2, 2).state_dict(), meta=dict(epoch=1))
    if place == 'meta':
        content['meta']['cfg'] = code
    else:
        content['message_hub'] = dict(runtime_info=dict(cfg=code, iter=3))
    torch.save(content, tmp_path / 'x.pth')
    parts = dict.fromkeys(['_init_pipeline', 'visualize', 'postprocess'])
    kind = type('Inferencer', (infer.BaseInferencer,), parts)  # the least that can be built
    with pytest.raises(ValueError, match='Cannot find the config in the checkpoint'):
        kind(weights=str(tmp_path / 'x.pth'), device='cpu', scope='mmengine')
    assert not mark.exists()


def test_a_file_that_a_tool_has_read_is_not_read_again(installed, tmp_path, monkeypatch):
    """With --unsafe-load, its code would run twice."""
    reads = []

    def read(*args):
        reads.append(args)
        return read_checkpoint(*args)

    monkeypatch.setattr('cyclemlp_mm.weights.mmengine_loader.read_checkpoint', read)
    file = str(tmp_path / 'x.pth')
    torch.save({'state_dict': {'w': torch.ones(2)}, 'meta': {}}, file)
    assert take_classes_of(Config(dict(load_from=file, default_scope='mmdet'))) == []
    content = CheckpointLoader.load_checkpoint(file, lambda storage, _: storage)
    assert len(reads) == 1 and content['state_dict']['w'].sum() == 2
    CheckpointLoader.load_checkpoint(file)
    assert len(reads) == 2  # what a tool has read is for one loading
    read_before_loading(file)
    torch.save({'state_dict': {'w': torch.zeros(2)}, 'meta': {}}, file)
    assert CheckpointLoader.load_checkpoint(file)['state_dict']['w'].sum() == 0


def test_ours_may_not(installed, tmp_path):
    state = {f'backbone.{n}': t for n, t in CycleMLP(ARCH).state_dict().items()}
    torch.save({'state_dict': {**state, 'backbone.x': [3]}}, tmp_path / 'ours.pth')
    with pytest.raises(CheckpointError, match=r'ours\.pth.*not tensors.*backbone\.x'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'ours.pth'))


class Unknown:
    """Of a class that no checkpoint may hold, but harmless."""


@pytest.fixture
def safe_again():
    yield
    allow_unsafe_loading(False)


def test_resume_auto_unpickles_a_refused_file_once(installed, tmp_path, safe_again, recwarn):
    """Whichever is the furthest; the runner gets what was unpickled."""
    for number in (10, 2, 3):
        meta = {'iter': number, 'epoch': 1, 'args': Unknown()}
        hub = {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}
        content = dict(state_dict={'w': torch.ones(2)}, meta=meta, optimizer={}, message_hub=hub)
        torch.save(content, tmp_path / f'iter_{number}.pth')
    with pytest.raises(CheckpointError, match='is refused'):
        find_newest(tmp_path)
    allow_unsafe_loading()
    found = find_newest(tmp_path)
    assert found.path.name == 'iter_10.pth'
    assert CheckpointLoader.load_checkpoint(str(found.path))['state_dict']['w'].sum() == 2
    assert sum('although safe loading refuses' in str(w.message) for w in recwarn) == 3


def test_convert_weights_has_the_option_that_its_message_names(tmp_path, safe_again):
    source, target = str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')
    torch.save({'model': CycleMLP(ARCH).state_dict(), 'args': Unknown()}, source)
    with pytest.raises(CheckpointError, match=r'a\.pth is refused: it holds .*Unknown.*--unsafe-l'):
        convert_weights([source, target])
    with pytest.warns(UserWarning, match='although safe loading refuses it'):
        convert_weights([source, target, '--unsafe-load'])
    assert convert_weights([target, str(tmp_path / 'c.safetensors')]).backbone
