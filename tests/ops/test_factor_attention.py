import sys

import pytest
import torch
from mixer_cases import worst
from old_torch import CPU_HALVES
from torch import nn

from cyclemlp_mm.ops import factor_attention, factor_attention_reference

WIDTHS = (8, 12, 12)


def modules(dtype=torch.float64):
    channels = sum(WIDTHS)
    norm = nn.LayerNorm(channels, eps=1e-6)
    nn.init.normal_(norm.weight, 1, 0.1)
    nn.init.normal_(norm.bias, 0, 0.1)
    convs = nn.ModuleList(
        nn.Conv2d(c, c, k, padding=k // 2, groups=c) for c, k in zip(WIDTHS, (3, 5, 7))
    )
    return nn.ModuleList(
        [norm, nn.Linear(channels, 3 * channels), nn.Linear(channels, channels), convs]
    ).to(dtype)


@pytest.mark.parametrize('chunk_bytes', [1, 2**16, 2**30])
@pytest.mark.parametrize('shape', [(1, 7, 5), (2, 20, 33), (5, 3, 4)])
@pytest.mark.parametrize('residual, layout', [(False, 'plain'), (True, 'nchw'), (True, 'sliced')])
def test_equals_the_reference_in_float64(shape, chunk_bytes, residual, layout, monkeypatch):
    # The package's function of the same name hides the module.
    monkeypatch.setattr(sys.modules[factor_attention.__module__], 'CHUNK_BYTES', chunk_bytes)
    parts = modules()
    x = torch.randn(*shape, 2 * sum(WIDTHS), dtype=torch.float64)[..., ::2]
    if layout != 'sliced':
        x = x.contiguous()
    if layout == 'nchw':
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    x.requires_grad_()
    y = factor_attention(x, *parts, heads=8, residual=residual)
    expected = factor_attention_reference(x, *parts, heads=8) + (x if residual else 0)
    with torch.no_grad():
        assert worst(y, expected) < 1e-12
        assert worst(factor_attention(x, *parts, heads=8, residual=residual), expected) < 1e-12
    inputs = [x, *parts.parameters()]
    grads = [torch.autograd.grad(torch.sin(t).sum(), inputs) for t in (y, expected)]
    assert all(worst(a, b) < 1e-12 for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize('dtype', CPU_HALVES)
def test_low_precision_over_many_tokens(dtype):
    # A softmax over 90 000 tokens is about 1e-5 everywhere: float16 holds it with 8 steps or none.
    parts = modules(torch.float32)
    x = torch.randn(1, 300, 300, sum(WIDTHS))
    with torch.no_grad():
        exact = factor_attention(x, *parts, heads=8, residual=False)
        low = factor_attention(x.to(dtype), *parts.to(dtype), heads=8, residual=False)
    assert low.dtype == dtype
    assert worst(low.float(), exact) < (0.005 if dtype == torch.float16 else 0.03)


def test_large_keys_do_not_overflow():
    parts = modules(torch.float32)
    with torch.no_grad():
        parts[1].bias[sum(WIDTHS) : 2 * sum(WIDTHS)] = 1e4
        parts[1].weight.mul_(30)
        y = factor_attention(torch.randn(1, 40, 40, sum(WIDTHS)), *parts, heads=8)
    assert y.isfinite().all()


def test_autocast_keeps_a_float32_residual():
    parts = modules(torch.float32)
    x = torch.randn(2, 8, 8, sum(WIDTHS), requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = factor_attention(x, *parts, heads=8)
    assert y.dtype == torch.float32
    y.square().sum().backward()
    assert x.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in parts.parameters())
