"""Paddle's files: their own golden logits, and each Linear weight the right way round."""

import pickle

import numpy as np
import pytest
import torch
from parity_rule import golden, published_model_state
from paths import PARITY, needs_parity

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights import cyclemlp, read_checkpoint
from cyclemlp_mm.weights.convert import TARGETS, convert
from cyclemlp_mm.weights.formats import INNER_NAMES
from cyclemlp_mm.weights.mmengine_loader import load_from_path

PADDLE_TINY = dict(depths=(1, 2, 2, 1), widths=(16, 24, 40, 64), mlp_ratios=(4, 4, 2, 2))
PADDLE_TINY.update(reweight=True, downsample='conv')


def load(path):
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = CycleMLP(PADDLE_TINY, out_indices=(3,), init_cfg=init_cfg)
    model.init_weights()
    return model.eval()


@needs_parity
@pytest.mark.parametrize('to', ['paddle', *TARGETS])
@torch.no_grad()
def test_paddles_own_file_gives_its_golden_logits(to, tmp_path):
    path = PARITY / 'paddle_tiny.pdparams'
    done = convert(path, tmp_path / 'whole.pth', 'ours')
    assert done.source == 'Paddle' and done.arch.startswith('custom (depths 1-2-2-1')
    if to != 'paddle':
        convert(path, tmp_path / f'tiny.{to}', to)
        path = tmp_path / f'tiny.{to}'
        convert(path, tmp_path / 'whole.pth', 'ours', force=True)
    head = read_checkpoint(tmp_path / 'whole.pth')['state_dict']
    expected, image = golden('paddle_tiny')
    pooled = load(path)(torch.from_numpy(image))[-1].mean(dim=(2, 3))
    got = pooled @ head['head.fc.weight'].T + head['head.fc.bias']
    expected = torch.from_numpy(expected['logits'])
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('arch, protocol', [('b1', 2), ('b1', 3), ('b1', 4), ('t', 5)])
def test_linear_weights_are_transposed_in_every_protocol(arch, protocol, tmp_path):
    """Which ones are Linear is asked of PyTorch's modules, not of the reader's rule."""
    published = published_model_state(arch, classifier=10)
    linear = {'mlp_c', 'proj', 'fc1', 'fc2', 'head', 'reduction'}
    arrays = {INNER_NAMES: {name: f'linear_{i}.w_0' for i, name in enumerate(published)}}
    for name, tensor in published.items():
        turned = name.split('.')[-2] in linear and tensor.dim() == 2
        arrays[name] = (tensor.t() if turned else tensor).contiguous().numpy()
    (tmp_path / 'x.pdparams').write_bytes(pickle.dumps(arrays, protocol))
    read = read_checkpoint(tmp_path / 'x.pdparams')
    assert INNER_NAMES not in read and set(read) == set(published)
    back = cyclemlp.from_paddle(read)
    assert all(torch.equal(back[name], tensor) for name, tensor in published.items())


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
        load(path)
    with pytest.raises(CheckpointError, match='Paddle file, but not of a CycleMLP'):
        load_from_path(str(path))
