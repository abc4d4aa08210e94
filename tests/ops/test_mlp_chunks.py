"""The MLP over chunks of tokens against LayerNorm, Linear, GELU, Linear on the whole map."""

import pytest
import torch
from mixer_cases import distance, worst
from old_torch import CPU_HALVES
from torch import nn

from cyclemlp_mm.models.layers import DropPath, Mlp, residual_mlp
from cyclemlp_mm.ops import chunked_mlp, mlp_chunks

pytestmark = pytest.mark.usefixtures('chunks')


@pytest.fixture(params=['plain', 'one chunk', 'many', 'many, made again'])
def chunks(request, monkeypatch):
    """Every way that a size can lead to, for maps of one size."""
    limits = {} if request.param == 'plain' else dict(PLAIN_MAX_BYTES=0)
    if 'many' in request.param:
        limits.update(HIDDEN_CHUNK_BYTES=1, KEPT_CHUNK_BYTES=1, MIN_CHUNK_TOKENS=64)
    if 'again' in request.param:
        limits.update(RECOMPUTE_MIN_BYTES=0)
    for name, value in limits.items():
        monkeypatch.setattr(mlp_chunks, name, value)


def modules(channels, dtype, ratio=3):
    norm, mlp = nn.LayerNorm(channels), Mlp(channels, ratio * channels)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm.to(dtype), mlp.to(dtype)


def plain(x, norm, mlp, residual=True):
    y = mlp(norm(x))
    return x + y if residual else y


# Wide ones keep what enters the GELU, narrow ones make it again.
@pytest.mark.parametrize('channels', [5, 64, 130])
@pytest.mark.parametrize('residual', [True, False])
def test_equals_the_plain_modules(channels, residual):
    norm, mlp = modules(channels, torch.float64)
    x = torch.randn(2, 13, 17, channels, dtype=torch.float64, requires_grad=True)
    tensors = [x, *norm.parameters(), *mlp.parameters()]
    before = x.detach().clone()
    y = chunked_mlp(x, norm, mlp.fc1, mlp.fc2, residual)
    expected = plain(x, norm, mlp, residual)
    assert worst(y.detach(), expected.detach()) < 1e-12
    with torch.no_grad():
        assert worst(chunked_mlp(x, norm, mlp.fc1, mlp.fc2, residual), expected) < 1e-12
    assert torch.equal(x, before)
    grads = [torch.autograd.grad(torch.sin(map_).sum(), tensors) for map_ in (y, expected)]
    assert all(worst(got, theirs) < 1e-10 for got, theirs in zip(*grads, strict=True))


@pytest.mark.few(10)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('onednn', [True, False])
@pytest.mark.parametrize('channels', [64, 320])
def test_as_close_to_float64_as_the_plain_modules(dtype, onednn, channels, monkeypatch):
    if not onednn:
        monkeypatch.setattr('cyclemlp_mm.ops.cpu_linear.has_onednn', lambda x: False)
    norm, mlp = modules(channels, dtype)
    x = torch.randn(2, 30, 41, channels).to(dtype)
    with torch.no_grad():
        theirs, ours = plain(x, norm, mlp), chunked_mlp(x, norm, mlp.fc1, mlp.fc2)
        exact = plain(x.double(), norm.double(), mlp.double())
    assert ours.dtype == dtype
    assert distance(ours, exact) <= 2 * distance(theirs, exact)


@pytest.mark.parametrize('dtype', CPU_HALVES)
@pytest.mark.parametrize('grad', [True, False])
def test_autocast(dtype, grad):
    norm, mlp = modules(64, torch.float32)
    x = torch.randn(2, 13, 17, 64)
    with torch.set_grad_enabled(grad):
        with torch.autocast('cpu', dtype):
            ours, theirs = chunked_mlp(x, norm, mlp.fc1, mlp.fc2), plain(x, norm, mlp)
        assert ours.dtype == theirs.dtype == torch.float32
        assert ours.requires_grad is grad
        exact = plain(x, norm, mlp)
    assert distance(ours, exact.double()) <= 2 * distance(theirs, exact.double())


def test_gradients_only_where_asked():
    norm, mlp = modules(12, torch.float64)
    x = torch.randn(1, 5, 6, 12, dtype=torch.float64, requires_grad=True)
    for parameter in [*norm.parameters(), *mlp.parameters()]:
        parameter.requires_grad_(False)
    ours = torch.autograd.grad(chunked_mlp(x, norm, mlp.fc1, mlp.fc2).sum(), x)[0]
    assert worst(ours, torch.autograd.grad(plain(x, norm, mlp).sum(), x)[0]) < 1e-10
    mlp.fc1.weight.requires_grad_(True)
    y = chunked_mlp(x.detach(), norm, mlp.fc1, mlp.fc2)
    y.square().sum().backward()
    assert mlp.fc1.weight.grad is not None
    assert mlp.fc2.weight.grad is None


def test_drop_path_drops_the_branch_of_a_sample():
    norm, mlp = modules(12, torch.float32)
    drop_path = DropPath(0.5).train()
    x = torch.randn(64, 2, 2, 12)
    y = residual_mlp(x, norm, mlp, drop_path)
    dropped = (y == x).flatten(1).all(1)
    assert 10 < dropped.sum() < 54
    kept = x + 2 * mlp(norm(x))
    torch.testing.assert_close(y[~dropped], kept[~dropped])
    assert not (residual_mlp(x, norm, mlp, drop_path.eval()) == x).flatten(1).all(1).any()
