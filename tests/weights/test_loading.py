"""A backbone is loaded from every kind of file: all of it, or nothing and the reason."""

import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from families import FAMILIES, MPVIT
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from plain_mpvit import PlainMPViT
from published_names import published_state_dict

from cyclemlp_mm.errors import CheckpointError, MissingFileError
from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.weights import read_checkpoint


def publish_mpvit(model, classifier=None):
    return PlainMPViT(MPVIT, classes=classifier or 1).state_dict()


PUBLISHED = dict(reweighted=published_state_dict, summed=published_state_dict, mpvit=publish_mpvit)


def source(family='reweighted', **kwargs):
    """A model whose every tensor is random, norms included."""
    model = FAMILIES[family](**kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def load(content, tmp_path, family='reweighted', prefix=None, **kwargs):
    """A model of a file with ``content``; None takes the file that is there."""
    path = tmp_path / 'file.pth'
    if content is not None:
        torch.save(content, path)
    cfg = dict(type='Pretrained', checkpoint=str(path))
    model = FAMILIES[family](init_cfg=cfg if prefix is None else dict(cfg, prefix=prefix), **kwargs)
    model.init_weights()
    return model


def assert_same(model, other, but=()):
    for name, tensor in model.state_dict().items():
        if not name.startswith(tuple(but)):
            assert torch.equal(tensor, other.state_dict()[name]), name


WRAPPERS = {
    'bare': lambda state: state,
    'model': lambda state: {'model': state, 'epoch': 300},
    'module': lambda state: {'state_dict': {f'module.{n}': t for n, t in state.items()}},
    'backbone': lambda state: {f'backbone.{n}': t for n, t in state.items()},
    'both': lambda state: {'model': {f'module.backbone.{n}': t for n, t in state.items()}},
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('family', FAMILIES)
def test_our_own_and_published_files_load_however_wrapped(tmp_path, family, wrapper, log_lines):
    model = source(family)
    assert_same(model, load(WRAPPERS[wrapper](model.state_dict()), tmp_path, family))
    if family in PUBLISHED:
        total = len(model.state_dict())
        state = PUBLISHED[family](model)
        loaded = load(WRAPPERS[wrapper](state), tmp_path, family)
        assert f'loaded {total} of {total} tensors' in log_lines[-1]
        if family == 'mpvit':
            name = 'mhca_stages.1.mhca_blks.2.crpe.conv_list.2.weight'
            assert torch.equal(loaded.stages[1].paths[2].relative[2].weight, state[name])
        else:
            assert_same(model, loaded)


def test_a_published_classifier_leaves_dense_norms_as_they_are(tmp_path, log_lines):
    model = source()
    loaded = load(published_state_dict(model, classifier=10), tmp_path)
    new = ('norm0', 'norm1', 'norm2')
    assert_same(model, loaded, but=new)
    assert all(torch.all(getattr(loaded, name).weight == 1) for name in new)
    message, total = '\n'.join(log_lines), len(loaded.state_dict())
    assert f'loaded {total - 6} of {total} tensors from {tmp_path / "file.pth"}' in message
    assert 'new, not in the file: output norms (norm0.weight' in message
    assert 'classifier (2)' in message


@pytest.mark.parametrize('family', FAMILIES)
def test_levels_left_out_leave_their_norms_and_stages(tmp_path, family, log_lines):
    model = source(family)
    state = PUBLISHED[family](model) if family in PUBLISHED else model.state_dict()
    loaded = load(state, tmp_path, family, out_indices=(1, 2))
    if family != 'mpvit':
        assert_same(loaded, model)
    message = '\n'.join(log_lines)
    assert 'stages after the last returned level' in message
    assert family == 'mpvit' or 'output norms' in message


def test_a_whole_detectors_checkpoint(tmp_path, log_lines):
    model = source()
    state = {f'backbone.{n}': t for n, t in model.state_dict().items()}
    state |= {'neck.convs.0.weight': torch.ones(3), 'bbox_head.bias': torch.ones(2)}
    history = HistoryBuffer()
    history.update(1.5)
    meta = {'epoch': 3, 'seed': np.int64(7), 'dataset_meta': {'classes': ('a', 'b')}}
    content = {'state_dict': state, 'meta': meta, 'message_hub': {'log_scalars': {'loss': history}}}
    assert_same(model, load(content, tmp_path))
    assert 'rest of the model (2)' in '\n'.join(log_lines)


@pytest.mark.parametrize('prefix', ['module.encoder.', 'module.encoder', 'encoder.', 'encoder'])
def test_named_prefix(tmp_path, prefix):
    """As it is in the file, or without the ``module.`` of DistributedDataParallel."""
    model = source()
    state = {f'module.encoder.{n}': t for n, t in model.state_dict().items()}
    assert_same(model, load({'state_dict': state, 'epoch': 3}, tmp_path, prefix=prefix))
    with pytest.raises(CheckpointError, match=r'file\.pth.*None of its.*begin with encoder'):
        load(state, tmp_path)
    with pytest.raises(CheckpointError, match=r"no name that begins with prefix='net\.'"):
        load(state, tmp_path, prefix='net.')
    state = {f'module.{n}': t for n, t in model.state_dict().items()}
    assert_same(model, load(state, tmp_path, prefix='module.'))


def test_half_the_keys_are_refused_and_change_nothing(tmp_path):
    state = published_state_dict(source())
    torch.save(dict(list(state.items())[: len(state) // 2]), tmp_path / 'half.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'half.pth'))
    model = FAMILIES['reweighted'](init_cfg=cfg)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'half\.pth does not fit.*tensors are missing'):
        model.init_weights()
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())


@pytest.mark.parametrize('name', ['stem.proj.bias', 'norm1.weight', 'stages.1.0.mixer.proj.weight'])
def test_one_missing_tensor_is_refused_unless_an_output_norm(tmp_path, name):
    state = source().state_dict()
    del state[name]
    if name.startswith('norm'):
        with pytest.raises(CheckpointError, match=rf'1 of \d+ tensors are missing.*{name}'):
            load(state, tmp_path)  # half a norm is damage
        norm = name.split('.')[0]
        load({n: t for n, t in state.items() if not n.startswith(f'{norm}.')}, tmp_path)
    else:
        with pytest.raises(CheckpointError, match=rf'1 of \d+ tensors are missing.*{name}'):
            load(state, tmp_path)


def test_unknown_tensors_are_refused(tmp_path):
    state = published_state_dict(source()) | {'network.0.0.attn.qkv.weight': torch.ones(2)}
    with pytest.raises(CheckpointError, match=r'1 are unknown.*qkv'):
        load(state, tmp_path)


_LAYER = 'mhca_stages.1.mhca_blks.0.MHCA_layers.0.factoratt_crpe.'


@pytest.mark.parametrize(
    'name, change, message',
    [
        (f'{_LAYER}qkv.bias', None, r'missing.*stages\.1\.paths\.0\.layers\.0\.qkv\.bias'),
        (f'{_LAYER}crpe.conv_list.0.bias', lambda t: t + 1, 'layers of a path share this tensor'),
        ('mhca_stages.0.mhca_blks.0.extra.weight', lambda _: torch.ones(3), '1 are unknown.*extra'),
        ('stem.1.bn.running_var', lambda t: t[:-1], 'another shape.*running_var'),
    ],
)
def test_an_mpvit_that_does_not_fit(name, change, message, tmp_path):
    state = publish_mpvit(None)
    tensor = state.pop(name, None)
    with pytest.raises(CheckpointError, match=message):
        load(state if change is None else {**state, name: change(tensor)}, tmp_path, 'mpvit')


def test_another_arch_is_named(tmp_path):
    state = published_state_dict(CycleMLP('b1'), classifier=1000)
    with pytest.raises(
        CheckpointError, match=r'holds depths 2-2-4-2.*model has depths 1-1-1-1.*right arch'
    ):
        load(state, tmp_path)
    state = PlainMPViT(dict(MPVIT, depths=(1, 2, 1, 1))).state_dict()
    with pytest.raises(CheckpointError, match=r'depths 1-2-1-1.*depths 1-1-1-1'):
        load(state, tmp_path, 'mpvit')


def test_other_offsets_are_refused(tmp_path):
    state = published_state_dict(source())
    state['network.0.0.attn.sfc_w.offset'] = -state['network.0.0.attn.sfc_w.offset']
    with pytest.raises(CheckpointError, match=r'file\.pth.*sfc_w\.offset differs'):
        load(state, tmp_path)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / 'file.pth'
    with pytest.raises(MissingFileError, match=r'file\.pth does not exist'):
        load(None, tmp_path)
    torch.save(published_state_dict(source()), path)
    content = path.read_bytes()
    packed = tmp_path / 'packed.pth'
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / 'program.pt'))
    files = {
        b'': 'is empty',
        b'<!DOCTYPE html><html>Not Found</html>': 'HTML page',
        packed.read_bytes(): r'data\.pkl.*compressed.*unpack it',
        (tmp_path / 'program.pt').read_bytes(): r'TorchScript program.*state_dict',
        **{content[:part]: 'truncated' for part in (10, 200, len(content) // 2, len(content) - 1)},
    }
    for content, message in files.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf'file\.pth.*{message}'):
            load(None, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match='is not a file'):
        load(None, tmp_path)


@pytest.mark.parametrize('content', [{}, [1, 2], {'a': 1}, 3, {'state_dict': {'w': 'text'}}])
def test_files_without_a_state_dict(tmp_path, content):
    with pytest.raises(CheckpointError, match=r'file\.pth.*no state dict'):
        load(content, tmp_path)


def test_other_schemes_are_refused():
    with pytest.raises(CheckpointError, match='torchvision:// is not supported'):
        read_checkpoint('torchvision://resnet50')


@pytest.mark.parametrize(
    'wrong, error, message',
    [
        (dict(type='Pretrained', checkpoint='x.pth', strict=False), ValueError, 'takes'),
        (dict(type='Pretrained'), ValueError, "needs 'checkpoint'"),
        *((wrong, TypeError, 'init_cfg must be.*Pretrained') for wrong in ('x.pth', ['x.pth'], 3)),
    ],
)
def test_init_cfg_is_checked_when_the_model_is_built(wrong, error, message):
    with pytest.raises(error, match=message):
        FAMILIES['reweighted'](init_cfg=wrong)


@pytest.mark.parametrize(
    'kind', [PretrainedInit, 'mmengine.Pretrained', 'mmengine.model.PretrainedInit']
)
def test_every_way_to_name_it_is_strict(tmp_path, kind):
    model, path = source(), tmp_path / 'file.pth'
    cfg = dict(type=kind, checkpoint=str(path))
    torch.save(published_state_dict(model), path)
    other = FAMILIES['reweighted'](init_cfg=cfg)
    other.init_weights()
    assert_same(model, other)
    torch.save(source(out_indices=(0, 1)).state_dict(), path)
    with pytest.raises(CheckpointError, match='are missing'):
        FAMILIES['reweighted'](init_cfg=cfg).init_weights()


def test_counters_of_batches_may_be_missing_or_floats(tmp_path):
    model = MPViT(MPVIT)
    state = model.state_dict()
    counters = [name for name in state if name.endswith('num_batches_tracked')]
    assert counters
    assert_same(
        model, load({n: t for n, t in state.items() if n not in counters}, tmp_path, 'mpvit')
    )
    assert_same(model, load({n: t.float() for n, t in state.items()}, tmp_path, 'mpvit'))


def test_the_older_way_is_mapped_with_a_warning(tmp_path, log_lines):
    model = source()
    torch.save(model.state_dict(), tmp_path / 'ours.pth')
    other = FAMILIES['reweighted'](pretrained=str(tmp_path / 'ours.pth'))
    assert "'pretrained' is deprecated" in '\n'.join(log_lines)
    other.init_weights()
    assert_same(model, other)
    with pytest.raises(ValueError, match='not both'):
        FAMILIES['reweighted'](init_cfg=dict(type='Normal', layer='Linear'), pretrained='x.pth')


def test_other_initialisations_still_work():
    model = FAMILIES['reweighted'](init_cfg=dict(type='Constant', layer='Linear', val=0.5))
    model.init_weights()
    assert torch.all(model.stages[0][0].mlp.fc1.weight == 0.5)


def test_tensors_with_attributes(tmp_path):
    """FSDP sets attributes on the tensors of a state dict; they are no weights."""
    tensor, parameter = torch.randn(3, 2), torch.nn.Parameter(torch.randn(4))
    tensor._has_been_cloned = True
    parameter.note = {'any': [1, 2]}
    torch.save({'state_dict': {'a': tensor, 'b': parameter}}, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')['state_dict']
    assert torch.equal(read['a'], tensor) and torch.equal(read['b'], parameter)
    assert type(read['a']) is torch.Tensor and type(read['b']) is torch.nn.Parameter
    assert not hasattr(read['a'], '_has_been_cloned') and not hasattr(read['b'], 'note')


class Rebuilt:
    """Pickled as a tensor with attributes whose parts are lies."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._tensor._rebuild_from_type_v2, self.arguments


_V2, _ONE = torch._utils._rebuild_tensor_v2, (1, 0, (1,), (1,))


@pytest.mark.parametrize(
    'arguments',
    [
        (np.ones(3), torch.Tensor, (), {}),
        (torch._tensor._rebuild_from_type_v2, torch.Tensor, (), {}),
        (OrderedDict, torch.Tensor, (), {}),
        (_V2, torch.Tensor, [1], {}),
        (_V2, torch.Tensor, (), {}),
        (_V2, OrderedDict, _ONE, {}),
        (_V2, torch.Tensor, _ONE, {}),
        (_V2, torch.Tensor),
        (print, torch.Tensor, ('run',), {}),
        (_V2, torch.nn.Linear, _ONE, {}),
    ],
)
def test_lies_about_tensors_with_attributes(arguments, tmp_path, capsys):
    torch.save({'a': Rebuilt(*arguments)}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'a\.pth (is refused|cannot be read)'):
        read_checkpoint(tmp_path / 'a.pth')
    assert 'run' not in capsys.readouterr().out
