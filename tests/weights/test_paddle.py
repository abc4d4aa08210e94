"""Paddle's files: their own golden logits, and each Linear weight the right way round."""

import pickle

import numpy as np
import pytest
import torch
from parity_rule import golden, published_model_state
from paths import PARITY, needs_parity
from published_names import published_state_dict

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights import cyclemlp, read_checkpoint
from cyclemlp_mm.weights.mmengine_loader import load_from_path
from cyclemlp_mm.weights.paddle_files import INNER_NAMES

PADDLE_TINY = dict(depths=(1, 2, 2, 1), widths=(16, 24, 40, 64), mlp_ratios=(4, 4, 2, 2))
PADDLE_TINY.update(reweight=True, downsample='conv')


def write_pdparams(path, published, protocol=4):
    """As Paddle writes it: arrays, Linear weights transposed, and the table of inner names.

    Which ones are Linear is asked of PyTorch's modules, not of the reader's rule.
    """
    linear = {'mlp_c', 'proj', 'fc1', 'fc2', 'head', 'reduction'}
    arrays = {}
    for name, tensor in published.items():
        owner = name.split('.')[-2]
        turned = owner in linear and tensor.dim() == 2
        arrays[name] = (tensor.t() if turned else tensor).contiguous().numpy()
    arrays[INNER_NAMES] = {name: f'linear_{i}.w_0' for i, name in enumerate(published)}
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))


def load(arch, path):
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = CycleMLP(arch, out_indices=(3,), init_cfg=init_cfg)
    model.init_weights()
    return model.eval()


def logits(model, image, head):
    with torch.no_grad():
        pooled = model(torch.from_numpy(image))[-1].mean(dim=(2, 3))
    return pooled @ head['head.weight'] + head['head.bias']  # (in, out), as Paddle has it


def tiny_error(path=PARITY / 'paddle_tiny.pdparams'):
    """Largest difference to Paddle's logits, relative to the largest one."""
    expected, image = golden('paddle_tiny')
    got = logits(load(PADDLE_TINY, path), image, read_checkpoint(path))
    expected = torch.from_numpy(expected['logits'])
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


@needs_parity
def test_paddles_own_file_gives_its_golden_logits():
    assert tiny_error() <= 1e-5


@needs_parity
@pytest.mark.parametrize('module', ['proj', 'mlp_c', 'fc1'])
def test_a_missed_transpose_is_seen(monkeypatch, module):
    """The square ones load without an error, and only the output tells."""
    right = cyclemlp.is_linear

    def wrong(name):
        return right(name) and module not in name.split('.')

    monkeypatch.setattr(cyclemlp, 'is_linear', wrong)
    if module == 'fc1':
        with pytest.raises(CheckpointError, match='another shape'):
            tiny_error()
    else:
        assert tiny_error() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize('arch', sorted(CycleMLP.arch_zoo))
def test_a_file_of_every_arch_loads_bit_for_bit(arch, tmp_path):
    published = published_model_state(arch, classifier=10)
    write_pdparams(tmp_path / 'arch.pdparams', published)
    torch.save(published, tmp_path / 'arch.pth')
    ours, theirs = (load(arch, tmp_path / f'arch.{end}') for end in ('pdparams', 'pth'))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    pixels = torch.randn(1, 3, 64, 96).numpy()
    assert np.isfinite(logits(ours, pixels, read_checkpoint(tmp_path / 'arch.pdparams'))).all()


@needs_parity
@pytest.mark.parametrize('arch', ['b1', 'b2'])
def test_published_classifiers_as_paddle_files_give_the_golden_logits(arch, tmp_path):
    published = published_model_state(arch, classifier=1000)
    write_pdparams(tmp_path / 'cls.pdparams', published)
    expected, image = golden(f'cyclemlp_{arch}_cls')
    got = logits(
        load(arch, tmp_path / 'cls.pdparams'), image, read_checkpoint(tmp_path / 'cls.pdparams')
    )
    expected = torch.from_numpy(expected['logits'])
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    torch.manual_seed(1)
    published = published_state_dict(CycleMLP(PADDLE_TINY), classifier=7)
    write_pdparams(tmp_path / 'file.pdparams', published, protocol)
    read = read_checkpoint(tmp_path / 'file.pdparams')
    assert INNER_NAMES not in read
    assert set(read) == set(published)
    back = cyclemlp.from_paddle(read)
    assert all(torch.equal(back[name], tensor) for name, tensor in published.items())


def test_which_weights_are_linear():
    linear = """
        network.0.0.attn.proj.weight network.10.1.attn.proj.weight network.0.0.attn.mlp_c.weight
        network.0.0.attn.reweight.fc1.weight network.0.0.mlp.fc2.weight network.1.reduction.weight
        head.weight
    """
    others = """
        patch_embed.proj.weight network.1.proj.weight network.3.proj.weight norm.weight norm6.weight
        network.0.0.attn.sfc_h.weight network.0.0.attn.sfc_w.weight network.0.0.attn.sfc_h.offset
        network.0.0.mlp.fc2.bias network.0.0.norm1.weight network.1.norm.weight
    """
    assert all(map(cyclemlp.is_linear, linear.split()))
    assert not any(map(cyclemlp.is_linear, others.split()))


def test_bfloat16_and_named_tensors(tmp_path):
    # Paddle saves bfloat16 as uint16, and a tensor inside a container with its inner name.
    half = torch.randn(3, 4).bfloat16()
    array = half.view(torch.int16).numpy().view(np.uint16)
    content = {'a': array, 'b': ('linear_0.w_0', np.ones(3, np.float32)), INNER_NAMES: {}}
    (tmp_path / 'x.pdparams').write_bytes(pickle.dumps(content, protocol=4))
    read = read_checkpoint(tmp_path / 'x.pdparams')
    assert torch.equal(read['a'], half)
    assert torch.equal(read['b'], torch.ones(3))


def test_other_paddle_files(tmp_path):
    path = tmp_path / 'x.pdparams'
    path.write_bytes(pickle.dumps({'a': np.ones(3), 'b': np.array(['text'])}, protocol=4))
    with pytest.raises(CheckpointError, match=r'x\.pdparams.*entry b is an array of <U4'):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({'fc.weight': np.ones((3, 3), np.float32)}, protocol=4))
    with pytest.raises(CheckpointError, match=r'x\.pdparams does not fit'):
        load(PADDLE_TINY, path)
    with pytest.raises(CheckpointError, match='Paddle file, but not of a CycleMLP'):
        load_from_path(str(path))


@pytest.mark.parametrize('kind', ['<f4', '>f4', '<f2', '<u2'])
@pytest.mark.parametrize('inner_names', [False, True])
def test_an_array_under_many_names_takes_its_memory_once(kind, inner_names, tmp_path):
    """A file of 4 MB, one array under a thousand names, took 4.5 GB."""
    array = np.ones((100, 100), kind).T
    entry = ('inner', array) if inner_names else array
    content = {f'a{i}': entry for i in range(100)}
    (tmp_path / 'x.pdparams').write_bytes(pickle.dumps(content, protocol=4))
    tensors = read_checkpoint(tmp_path / 'x.pdparams').values()
    assert len(tensors) == 100 and all(tensor.shape == (100, 100) for tensor in tensors)
    storages = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
    assert sum(storages.values()) == array.nbytes
