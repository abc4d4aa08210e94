"""A backbone is loaded from every kind of file: all of it, or nothing and the reason."""

import zipfile

import pytest
import torch
from families import FAMILIES, MPVIT
from mmengine.model import PretrainedInit
from plain_mpvit import PlainMPViT
from published_names import published_state_dict

from cyclemlp_mm.errors import CheckpointError, MissingFileError
from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.weights import read_checkpoint


def publish_mpvit(model, classifier=1):
    return PlainMPViT(MPVIT, classes=classifier).state_dict()


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
    'both': lambda state: {'state_dict': {f'module.backbone.{n}': t for n, t in state.items()}},
}


@pytest.mark.few(6)
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
    assert_same(model, load({'state_dict': state, 'meta': {'epoch': 3}}, tmp_path))
    assert 'rest of the model (2)' in '\n'.join(log_lines)


def test_half_the_keys_are_refused_and_change_nothing(tmp_path):
    state = published_state_dict(source())
    torch.save(dict(list(state.items())[: len(state) // 2]), tmp_path / 'half.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'half.pth'))
    model = FAMILIES['reweighted'](init_cfg=cfg)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'half\.pth does not fit.*tensors are missing'):
        model.init_weights()
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())


_OFFSET = 'network.0.0.attn.sfc_w.offset'
_STAGE = 'mhca_stages.1.mhca_blks.0.'
_QKV = f'{_STAGE}MHCA_layers.0.factoratt_crpe.qkv.bias'
_SHARED = f'{_STAGE}MHCA_layers.0.factoratt_crpe.crpe.conv_list.0.bias'


@pytest.mark.parametrize(
    'family, name, change, message',
    [
        ('reweighted', 'patch_embed.proj.bias', None, r'1 of \d+ .* are missing.*stem\.proj\.bias'),
        ('reweighted', 'norm2.weight', None, r'1 of \d+ .* are missing.*norm1\.weight'),
        ('reweighted', 'network.0.0.x', lambda _: torch.ones(2), r'1 are unknown.*stages\.0\.0\.x'),
        ('reweighted', _OFFSET, lambda t: -t, r'file\.pth.*sfc_w\.offset differs'),
        ('mpvit', _QKV, None, r'missing.*stages\.1\.paths\.0\.layers\.0\.qkv\.bias'),
        ('mpvit', _SHARED, lambda t: t + 1, 'layers of a path share this tensor'),
        ('mpvit', f'{_STAGE}extra', lambda _: torch.ones(3), '1 are unknown.*extra'),
        ('mpvit', 'stem.1.bn.running_var', lambda t: t[:-1], 'another shape.*running_var'),
        (
            'mpvit',
            'stem.1.bn.running_var',
            lambda t: t / 0,
            'nan or inf in 1 tensor, .*running_var',
        ),
        ('reweighted', 'norm2.weight', lambda t: t.to_sparse(), 'another shape or type.*norm1'),
    ],
)
def test_a_published_file_that_does_not_fit(family, name, change, message, tmp_path):
    state = PUBLISHED[family](source(family))
    tensor = state.pop(name, None)
    with pytest.raises(CheckpointError, match=message):
        load(state if change is None else {**state, name: change(tensor)}, tmp_path, family)


def test_an_average_next_to_the_weights_is_reported(tmp_path, log_lines):
    state = source().state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    model = load({'model': state, 'model_ema': other}, tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    report = f"not used, under 'model_ema': {len(state)} tensors of the same names"
    assert any(report in line for line in log_lines)


def test_a_whole_output_norm_may_be_missing(tmp_path):
    state = source().state_dict()
    load({n: t for n, t in state.items() if not n.startswith('norm1.')}, tmp_path)


def test_another_arch_is_named(tmp_path):
    state = published_state_dict(CycleMLP('b1'), classifier=1000)
    with pytest.raises(
        CheckpointError, match=r'holds depths 2-2-4-2.*model has depths 1-1-1-1.*right arch'
    ):
        load(state, tmp_path)
    state = PlainMPViT(dict(MPVIT, depths=(1, 2, 1, 1))).state_dict()
    with pytest.raises(CheckpointError, match=r'depths 1-2-1-1.*depths 1-1-1-1'):
        load(state, tmp_path, 'mpvit')


def test_files_that_cannot_be_read(tmp_path):
    path, packed = tmp_path / 'file.pth', tmp_path / 'packed.pth'
    with pytest.raises(MissingFileError, match=r'file\.pth does not exist'):
        load(None, tmp_path)
    torch.save(published_state_dict(source()), path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / 'program.pt'))
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({'a': quantised}, tmp_path / 'quantised.pth')
    files = {
        b'': 'is empty',
        b'<!DOCTYPE html><html>Not Found</html>': 'HTML page',
        (tmp_path / 'quantised.pth').read_bytes(): r'QInt8Storage; quantised tensors are not read',
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
    with pytest.raises(CheckpointError, match='torchvision:// is not supported'):
        read_checkpoint('torchvision://resnet50')


@pytest.mark.parametrize('content', [{}, [1, 2], {'a': 1}, 3, {'state_dict': {'w': 'text'}}])
def test_files_without_a_state_dict(tmp_path, content):
    with pytest.raises(CheckpointError, match=r'file\.pth.*no.* state dict'):
        load(content, tmp_path)


@pytest.mark.parametrize(
    'wrong, error, message',
    [
        (dict(type='Pretrained', checkpoint='x.pth', strict=False), ValueError, 'takes'),
        (dict(type='Pretrained'), ValueError, "needs 'checkpoint'"),
        (dict(checkpoint='a.pth'), ValueError, 'must have a type'),
        (dict(type='Pretrained', checkpoint='x.pth', prefix=3), TypeError, 'prefix must be a text'),
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
    lacking = {n: t for n, t in state.items() if n not in counters}
    assert_same(model, load(lacking, tmp_path, 'mpvit'))
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
