import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import nn

from cyclemlp_mm import registration

CFG = dict(type='SyncBNOrBN', requires_grad=True)


def test_bn_where_sync_bn_cannot_run(log_lines):
    registration._warn_of_bn.cache_clear()
    module = ConvModule(3, 4, 3, norm_cfg=CFG)
    assert type(module.norm) is nn.BatchNorm2d
    assert set(module.state_dict()) == set(
        ConvModule(3, 4, 3, norm_cfg=dict(type='SyncBN')).state_dict()
    )
    ConvModule(3, 4, 3, norm_cfg=CFG)
    assert [line for line in log_lines if 'BN is used in place of SyncBN' in line] == [
        'BN is used in place of SyncBN, as there is one process'
    ]


def test_sync_bn_with_several_gpus(monkeypatch):
    monkeypatch.setattr('mmengine.dist.get_world_size', lambda: 8)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert type(ConvModule(3, 4, 3, norm_cfg=CFG).norm) is nn.SyncBatchNorm


def test_bn_with_several_cpu_processes(monkeypatch):
    monkeypatch.setattr('mmengine.dist.get_world_size', lambda: 2)
    assert type(ConvModule(3, 4, 3, norm_cfg=CFG).norm) is nn.BatchNorm2d


def test_freezing_through_norm_cfg():
    frozen = ConvModule(3, 4, 3, norm_cfg=dict(CFG, requires_grad=False))
    assert not any(p.requires_grad for p in frozen.norm.parameters())


def test_is_in_the_root_registry():
    assert MODELS.get('SyncBNOrBN') is registration.SyncBNOrBN
