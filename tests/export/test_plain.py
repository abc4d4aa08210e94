"""The form to be exported: equal to the model, and traceable at any size."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import cyclemlp_mm  # noqa: F401 - registers the backbones
from cyclemlp_mm.export import plain_form
from cyclemlp_mm.export.adaptive_pool import PlainAdaptiveAvgPool2d

TINY = dict(depths=(1, 1, 1, 1), widths=(20, 24, 28, 40), mlp_ratios=(2, 1, 1, 1))
ARCHS = {
    'b': dict(TINY, reweight=True, downsample='conv'),
    't': dict(TINY, reweight=False, downsample='patch_merging'),
}
SIZES = [(64, 96), (131, 97), (36, 45)]


def randomised(arch):
    model = MODELS.build(dict(type='CycleMLP', arch=ARCHS[arch], drop_path_rate=0.1)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    return model


def assert_equal(expected, got):
    assert len(expected) == len(got)
    for ours, theirs in zip(expected, got):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.parametrize('arch', ARCHS)
def test_equals_the_model(arch):
    model = randomised(arch)
    plain = plain_form(model.train())
    assert not plain.training and model.training  # a copy
    assert sum(p.numel() for p in model.parameters()) > 0
    model.eval()
    for height, width in SIZES:
        image = torch.randn(2, 3, height, width)
        with torch.no_grad():
            assert_equal(model(image), plain(image))


@pytest.mark.parametrize('arch', ARCHS)
def test_torchscript_trace_holds_at_other_sizes(arch, tmp_path):
    model = randomised(arch)
    with torch.no_grad():
        torch.jit.trace(plain_form(model), torch.randn(1, 3, 64, 64)).save(tmp_path / 'traced.pt')
        traced = torch.jit.load(tmp_path / 'traced.pt')
        for height, width in SIZES:
            image = torch.randn(3, 3, height, width)
            assert_equal(model(image), traced(image))


def test_the_model_itself_can_be_traced_at_one_size():
    model = randomised('b')
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        traced = torch.jit.trace(model, image)
        other = torch.randn(2, 3, 64, 96)
        assert_equal(model(other), traced(other))


@pytest.mark.parametrize('cells', [1, 2, 3, 6, (2, 5)])
@pytest.mark.parametrize('size', [(7, 12), (6, 6), (13, 3)])
def test_adaptive_pooling(cells, size):
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = nn.AdaptiveAvgPool2d(cells)(x)
    torch.testing.assert_close(PlainAdaptiveAvgPool2d(cells)(x), expected)
