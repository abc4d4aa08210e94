"""Layers shared by the families, against PyTorch's plain operators."""

import pytest
import torch
import torch.nn.functional as F

from cyclemlp_mm.models.layers import ConvDownsample


@pytest.mark.parametrize('batch', [0, 1, 3])
@pytest.mark.parametrize('height, width', [(1, 1), (3, 2), (9, 31), (40, 56)])
def test_conv_downsample_in_either_layout(batch, height, width):
    """A small map is convolved in another layout than a large one: the same numbers and grads."""
    torch.manual_seed(0)
    layer = ConvDownsample(16, 24, kernel_size=3, stride=2, padding=1).double()
    x = torch.randn(batch, height, width, 16, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    expected = F.conv2d(
        x.permute(0, 3, 1, 2), layer.proj.weight, layer.proj.bias, stride=2, padding=1
    ).permute(0, 2, 3, 1)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    inputs = (x, *layer.parameters())
    upstream = torch.randn_like(y)
    for got, wanted in zip(
        torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('side, layout', [(14, torch.contiguous_format), (40, torch.channels_last)])
def test_conv_downsample_copies_the_smaller_one(side, layout):
    """Map or weight: whichever is smaller goes into the other one's layout."""
    layer = ConvDownsample(320, 512, kernel_size=3, stride=2, padding=1)
    seen = []
    layer.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer(torch.randn(1, side, side, 320))
    assert seen[0].is_contiguous(memory_format=layout)
