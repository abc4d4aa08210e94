"""Layers shared by the families, and norms that a config names."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from cyclemlp_mm import registration
from cyclemlp_mm.models.layers import ConvDownsample


@pytest.mark.parametrize('batch', [0, 1, 3])
@pytest.mark.parametrize('height, width', [(1, 1), (3, 2), (9, 31), (40, 56)])
def test_conv_downsample_in_either_layout(batch, height, width):
    """A small map is convolved in another layout than a large one: the same numbers and grads."""
    layer = ConvDownsample(16, 24, kernel_size=3, stride=2, padding=1).double()
    x = torch.randn(batch, height, width, 16, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    weight, bias = layer.parameters()
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, 2, 1).permute(0, 2, 3, 1)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    grads = [torch.autograd.grad(t, (x, weight, bias), upstream) for t in (y, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    'processes, gpu, kind, warned',
    [
        (1, False, nn.BatchNorm2d, 'BN is used in place of SyncBN, as there is one process'),
        (2, False, nn.BatchNorm2d, 'there is no GPU'),
        (8, True, nn.SyncBatchNorm, None),
    ],
)
def test_sync_bn_where_it_can_run(processes, gpu, kind, warned, monkeypatch, log_lines):
    assert MODELS.get('SyncBNOrBN') is registration.SyncBNOrBN
    conv_module = pytest.importorskip('mmcv.cnn').ConvModule
    registration._warn_of_bn.cache_clear()
    monkeypatch.setattr('mmengine.dist.get_world_size', lambda: processes)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    modules = [
        conv_module(3, 4, 3, norm_cfg=dict(type='SyncBNOrBN', requires_grad=trained))
        for trained in (True, False)
    ]
    assert [type(module.norm) for module in modules] == [kind] * 2
    trained = [parameter.requires_grad for m in modules for parameter in m.norm.parameters()]
    assert trained == [True, True, False, False]
    sync = conv_module(3, 4, 3, norm_cfg=dict(type='SyncBN'))
    assert set(modules[0].state_dict()) == set(sync.state_dict())
    lines = [line for line in log_lines if 'in place of SyncBN' in line]
    assert len(lines) == (warned is not None) and all(warned in line for line in lines)
