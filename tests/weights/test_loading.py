import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from published_names import published_state_dict

from cyclemlp_mm.errors import CheckpointError, MissingFileError
from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.weights import read_checkpoint

TINY = dict(
    depths=(1, 2, 1, 1),
    widths=(8, 12, 16, 20),
    mlp_ratios=(2, 2, 1, 1),
    reweight=True,
    downsample='conv',
)


def source(**kwargs):
    """A model whose every tensor is random, norms included."""
    model = CycleMLP(TINY, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def load(path, arch=TINY, prefix=None, **kwargs):
    cfg = dict(type='Pretrained', checkpoint=str(path))
    if prefix is not None:
        cfg['prefix'] = prefix
    model = CycleMLP(arch, init_cfg=cfg, **kwargs)
    model.init_weights()
    return model


def assert_same(model, other, but=()):
    for name, tensor in model.state_dict().items():
        if not name.startswith(tuple(but)):
            assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_published_dense_files_load_however_wrapped(tmp_path, wrapper, prefix):
    model = source()
    state = {prefix + name: tensor for name, tensor in published_state_dict(model).items()}
    torch.save({wrapper: state, 'epoch': 300} if wrapper else state, tmp_path / 'file.pth')
    assert_same(model, load(tmp_path / 'file.pth'))


def test_published_classifier_gives_dense_norms_anew(tmp_path, log_lines):
    model = source()
    torch.save(published_state_dict(model, classifier=10), tmp_path / 'cls.pth')
    loaded = load(tmp_path / 'cls.pth')
    new = ('norm0', 'norm1', 'norm2')
    assert_same(model, loaded, but=new)
    assert all(torch.all(getattr(loaded, name).weight == 1) for name in new)
    said = '\n'.join(log_lines)
    total = len(loaded.state_dict())
    assert f'loaded {total - 6} of {total} tensors from {tmp_path / "cls.pth"}' in said
    assert 'new, not in the file: output norms (norm0.weight' in said
    assert 'classifier (2)' in said


def test_levels_left_out_leave_their_norms_and_stages(tmp_path, log_lines):
    model = source()
    torch.save(published_state_dict(model), tmp_path / 'file.pth')
    assert_same(load(tmp_path / 'file.pth', out_indices=(1, 2)), model)
    said = '\n'.join(log_lines)
    assert 'output norms (4)' in said
    assert 'stages after the last returned level' in said


def test_our_own_and_whole_detectors_checkpoints_load(tmp_path, log_lines):
    model = source()
    torch.save(model.state_dict(), tmp_path / 'ours.pth')
    assert_same(model, load(tmp_path / 'ours.pth'))
    whole = {f'backbone.{n}': t for n, t in model.state_dict().items()}
    whole |= {'neck.convs.0.weight': torch.ones(3), 'bbox_head.bias': torch.ones(2)}
    history = HistoryBuffer()
    history.update(1.5)
    torch.save(
        {
            'state_dict': whole,
            'meta': {'epoch': 3, 'seed': np.int64(7), 'dataset_meta': {'classes': ('a', 'b')}},
            'message_hub': {'log_scalars': {'loss': history}},
        },
        tmp_path / 'detector.pth',
    )
    assert_same(model, load(tmp_path / 'detector.pth'))
    assert 'rest of the model (2)' in '\n'.join(log_lines)


def test_named_prefix(tmp_path):
    model = source()
    torch.save({f'encoder.{n}': t for n, t in model.state_dict().items()}, tmp_path / 'e.pth')
    assert_same(model, load(tmp_path / 'e.pth', prefix='encoder'))
    with pytest.raises(CheckpointError, match=r'e\.pth.*None of its.*begin with encoder'):
        load(tmp_path / 'e.pth')
    with pytest.raises(CheckpointError, match=r"no name that begins with prefix='net\.'"):
        load(tmp_path / 'e.pth', prefix='net.')


@pytest.mark.parametrize('prefix', ['module.encoder.', 'module.encoder', 'encoder.', 'encoder'])
def test_named_prefix_of_a_wrapped_model(tmp_path, prefix):
    """As it stands in the file, or without the ``module.`` of DistributedDataParallel."""
    model = source()
    state = {f'module.encoder.{n}': t for n, t in model.state_dict().items()}
    torch.save({'state_dict': state, 'epoch': 3}, tmp_path / 'e.pth')
    assert_same(model, load(tmp_path / 'e.pth', prefix=prefix))


def test_module_alone_as_a_prefix(tmp_path):
    model = source()
    torch.save({f'module.{n}': t for n, t in model.state_dict().items()}, tmp_path / 'm.pth')
    assert_same(model, load(tmp_path / 'm.pth', prefix='module.'))


def test_half_the_keys_are_refused_and_change_nothing(tmp_path):
    state = published_state_dict(source())
    torch.save(dict(list(state.items())[: len(state) // 2]), tmp_path / 'half.pth')
    model = CycleMLP(TINY, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'half.pth')))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'half\.pth does not fit.*tensors are missing'):
        model.init_weights()
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())


@pytest.mark.parametrize('name', ['stem.proj.bias', 'norm1.weight', 'stages.1.1.mixer.proj.weight'])
def test_one_missing_tensor_is_refused_unless_an_output_norm(tmp_path, name):
    state = source().state_dict()
    del state[name]
    torch.save(state, tmp_path / 'file.pth')
    if name.startswith('norm'):
        load(tmp_path / 'file.pth')
    else:
        with pytest.raises(CheckpointError, match=r'1 of 1\d\d tensors are missing'):
            load(tmp_path / 'file.pth')


def test_unknown_tensors_are_refused(tmp_path):
    state = published_state_dict(source()) | {'network.0.0.attn.qkv.weight': torch.ones(2)}
    torch.save(state, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match='1 are unknown'):
        load(tmp_path / 'file.pth')


def test_another_arch_is_named(tmp_path):
    torch.save(published_state_dict(CycleMLP('b1'), classifier=1000), tmp_path / 'b1.pth')
    with pytest.raises(
        CheckpointError, match=r'holds depths 2-2-4-2.*model has depths 2-3-10-3.*right arch'
    ):
        load(tmp_path / 'b1.pth', arch='b2')
    with pytest.raises(CheckpointError, match=r'another shape|right arch'):
        load(tmp_path / 'b1.pth', arch='b5')


def test_other_offsets_are_refused(tmp_path):
    state = published_state_dict(source())
    state['network.0.0.attn.sfc_w.offset'] = -state['network.0.0.attn.sfc_w.offset']
    torch.save(state, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=r'file\.pth.*sfc_w\.offset differs'):
        load(tmp_path / 'file.pth')


def test_files_that_cannot_be_read(tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save(published_state_dict(source()), whole)
    with pytest.raises(MissingFileError, match=r'nowhere\.pth does not exist'):
        load(tmp_path / 'nowhere.pth')
    (tmp_path / 'empty.pth').touch()
    with pytest.raises(CheckpointError, match=r'empty\.pth is empty'):
        load(tmp_path / 'empty.pth')
    content = whole.read_bytes()
    for part in (10, 200, len(content) // 2, len(content) - 1):
        (tmp_path / 'cut.pth').write_bytes(content[:part])
        with pytest.raises(CheckpointError, match=r'cut\.pth.*truncated'):
            load(tmp_path / 'cut.pth')
    (tmp_path / 'page.pth').write_text('<!DOCTYPE html><html>Not Found</html>')
    with pytest.raises(CheckpointError, match=r'page\.pth.*HTML page'):
        load(tmp_path / 'page.pth')
    with pytest.raises(CheckpointError, match='is not a file'):
        load(tmp_path)


@pytest.mark.parametrize('content', [{}, [1, 2], {'a': 1}, 3, {'state_dict': {'w': 'text'}}])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'other\.pth.*no state dict'):
        load(tmp_path / 'other.pth')


def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / 'program.pt'))
    with pytest.raises(CheckpointError, match=r'program\.pt.*TorchScript program.*state_dict'):
        load(tmp_path / 'program.pt')


def test_a_compressed_file_says_to_unpack_it(tmp_path):
    torch.save(source().state_dict(), tmp_path / 'whole.pth')
    with (
        zipfile.ZipFile(tmp_path / 'whole.pth') as whole,
        zipfile.ZipFile(tmp_path / 'packed.pth', 'w', zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match=r'packed\.pth.*data\.pkl.*compressed.*unpack it'):
        load(tmp_path / 'packed.pth')


class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('legacy', [False, True])
def test_code_in_a_file_is_not_run(tmp_path, legacy):
    mark = tmp_path / 'was_run'
    state = published_state_dict(source()) | {'extra': _Hostile(str(mark))}
    torch.save(state, tmp_path / 'evil.pth', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r'evil\.pth is refused.*mkdir'):
        load(tmp_path / 'evil.pth')
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(_Hostile(str(mark))))
    with pytest.raises(CheckpointError, match=r'plain\.pth'):
        load(tmp_path / 'plain.pth')
    assert not mark.exists()


def test_other_schemes_are_refused():
    with pytest.raises(CheckpointError, match='torchvision:// is not supported'):
        read_checkpoint('torchvision://resnet50')


def test_init_cfg_is_checked_when_the_model_is_built():
    with pytest.raises(ValueError, match='takes'):
        CycleMLP(TINY, init_cfg=dict(type='Pretrained', checkpoint='x.pth', strict=False))
    with pytest.raises(ValueError, match="needs 'checkpoint'"):
        CycleMLP(TINY, init_cfg=dict(type='Pretrained'))


@pytest.mark.parametrize(
    'kind', [PretrainedInit, 'mmengine.Pretrained', 'mmengine.model.PretrainedInit']
)
def test_every_way_to_name_it_is_strict(tmp_path, kind):
    model = source()
    torch.save(published_state_dict(model), tmp_path / 'published.pth')
    other = CycleMLP(TINY, init_cfg=dict(type=kind, checkpoint=str(tmp_path / 'published.pth')))
    other.init_weights()
    assert_same(model, other)
    torch.save(source(out_indices=(0, 1)).state_dict(), tmp_path / 'half.pth')
    other = CycleMLP(TINY, init_cfg=dict(type=kind, checkpoint=str(tmp_path / 'half.pth')))
    with pytest.raises(CheckpointError, match='are missing'):
        other.init_weights()


@pytest.mark.parametrize('wrong', ['x.pth', ['x.pth'], 3])
def test_init_cfg_of_another_type(wrong):
    with pytest.raises(TypeError, match=r"init_cfg must be .* dict\(type='Pretrained', checkpoint"):
        CycleMLP(TINY, init_cfg=wrong)


def test_counters_of_batches_may_lack_or_be_floats(tmp_path):
    model = MPViT('tiny')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'))
    counters = [name for name in model.state_dict() if name.endswith('num_batches_tracked')]
    for state in (
        {n: t for n, t in model.state_dict().items() if n not in counters},
        {n: t.float() for n, t in model.state_dict().items()},
    ):
        torch.save(state, tmp_path / 'file.pth')
        other = MPViT('tiny', init_cfg=cfg)
        other.init_weights()
        assert_same(model, other)
    assert counters


def test_older_way_is_mapped_with_a_warning(tmp_path, log_lines):
    model = source()
    torch.save(model.state_dict(), tmp_path / 'ours.pth')
    other = CycleMLP(TINY, pretrained=str(tmp_path / 'ours.pth'))
    assert "'pretrained' is deprecated" in '\n'.join(log_lines)
    other.init_weights()
    assert_same(model, other)
    with pytest.raises(ValueError, match='not both'):
        CycleMLP(TINY, init_cfg=dict(type='Normal', layer='Linear'), pretrained='x.pth')


def test_other_initialisations_still_work():
    model = CycleMLP(TINY, init_cfg=dict(type='Constant', layer='Linear', val=0.5))
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


@pytest.mark.parametrize(
    'arguments',
    [
        (np.ones(3), torch.Tensor, (), {}),
        (torch._tensor._rebuild_from_type_v2, torch.Tensor, (), {}),
        (OrderedDict, torch.Tensor, (), {}),
        (torch._utils._rebuild_tensor_v2, torch.Tensor, [1], {}),
        (torch._utils._rebuild_tensor_v2, torch.Tensor, (), {}),
        (torch._utils._rebuild_tensor_v2, OrderedDict, (1, 0, (1,), (1,)), {}),
        (torch._utils._rebuild_tensor_v2, torch.Tensor, (1, 0, (1,), (1,)), {}),
        (torch._utils._rebuild_tensor_v2, torch.Tensor),
        (print, torch.Tensor, ('run',), {}),
        (torch._utils._rebuild_tensor_v2, torch.nn.Linear, (1, 0, (1,), (1,)), {}),
    ],
)
def test_lies_about_tensors_with_attributes(arguments, tmp_path, capsys):
    torch.save({'a': Rebuilt(*arguments)}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'a\.pth (is refused|cannot be read)'):
        read_checkpoint(tmp_path / 'a.pth')
    assert 'run' not in capsys.readouterr().out
