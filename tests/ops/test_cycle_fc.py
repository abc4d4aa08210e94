import pytest
import torch
from torchvision.ops import deform_conv2d

from cyclemlp_mm.ops import CycleFC, cycle_fc, cycle_offsets

KERNELS = [(1, k) for k in (1, 3, 5, 7)] + [(k, 1) for k in (3, 5, 7)]


def published(x, weight, bias, kernel_size):
    """The published operator: deform_conv2d with the published offsets, NCHW in and out.

    The offsets are written here as in the published code's loop, not taken from our table.
    """
    channels = x.shape[1]
    offset = torch.zeros(1, 2 * channels, 1, 1, dtype=x.dtype)
    start = (kernel_size[0] * kernel_size[1]) // 2
    for i in range(channels):
        if kernel_size[0] == 1:
            offset[0, 2 * i + 1] = (i + start) % kernel_size[1] - kernel_size[1] // 2
        else:
            offset[0, 2 * i] = (i + start) % kernel_size[0] - kernel_size[0] // 2
    batch, _, height, width = x.shape
    return deform_conv2d(x, offset.expand(batch, -1, height, width), weight[:, :, None, None], bias)


def test_offsets_are_frozen():
    steps = [0, 1, -1, 0, 1, -1, 0]
    assert cycle_offsets(7, (1, 3)).tolist() == [[0, step] for step in steps]
    assert cycle_offsets(7, (3, 1)).tolist() == [[step, 0] for step in steps]
    assert cycle_offsets(6, (1, 5))[:, 1].tolist() == [0, 1, 2, -2, -1, 0]
    assert cycle_offsets(8, (7, 1))[:, 0].tolist() == [0, 1, 2, 3, -3, -2, -1, 0]
    assert cycle_offsets(4, (1, 1)).tolist() == [[0, 0]] * 4


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kernel_size', KERNELS)
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 3), (5, 1), (8, 8), (37, 53)])
def test_equals_deform_conv2d_forward_and_backward(kernel_size, size, dtype):
    x = torch.randn(2, 10, *size, dtype=dtype, requires_grad=True)
    weight = torch.randn(6, 10, dtype=dtype, requires_grad=True)
    bias = torch.randn(6, dtype=dtype, requires_grad=True)
    expected = published(x, weight, bias, kernel_size)
    upstream = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (x, weight, bias), upstream)

    got = cycle_fc(x.permute(0, 2, 3, 1), weight, bias, kernel_size).permute(0, 3, 1, 2)
    grads = torch.autograd.grad(got, (x, weight, bias), upstream)

    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for ours, theirs in zip((got, *grads), (expected, *expected_grads), strict=True):
        scale = theirs.abs().max().clamp(min=1e-6)
        assert (ours - theirs).abs().max() <= tolerance * scale


def test_wrong_kernels_and_layouts():
    for kernel_size in ((3, 3), (1, 2), (0, 1), (-1, 1), 3, '13', (1, 3, 1), (1.0, 3), None):
        with pytest.raises(ValueError, match='kernel_size'):
            CycleFC(4, 4, kernel_size)
    with pytest.raises(ValueError, match='channels-last'):
        CycleFC(4, 4, (1, 3))(torch.randn(1, 4, 8, 8))
