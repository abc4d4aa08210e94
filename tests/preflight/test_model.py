"""Levels that nobody uses, and learning rates by layer, found before a training."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from cyclemlp_mm.engine import configs_dir, load_config, require_toolbox
from cyclemlp_mm.preflight.findings import Report
from cyclemlp_mm.preflight.model import check_layer_decay, check_levels

ROW = dict(
    depths=(1, 1, 1, 1),
    widths=(8, 16, 24, 32),
    mlp_ratios=(1, 1, 1, 1),
    reweight=True,
    downsample='conv',
)
HEAD = dict(in_channels=32, channels=8, num_classes=3, norm_cfg=dict(type='BN'))


def found(check, cfg, **model):
    init_default_scope(require_toolbox(cfg))
    cfg.model.update(model)
    report = Report()
    check(report, cfg, MODELS.build(cfg.model))
    return [f'{finding}' for finding in report.findings]


def segmentor(head, auxiliary=None, backbone='CycleMLP', **kwargs):
    cfg = load_config('fpn_cyclemlp_b1_256x256_600i_small')
    cfg.model.backbone = dict(type=backbone, arch=ROW, **kwargs)
    cfg.model.neck = None
    cfg.model.decode_head = dict(HEAD, **head)
    cfg.model.auxiliary_head = auxiliary
    return cfg


@pytest.mark.parametrize(
    'head',
    [dict(type='FCNHead', num_convs=1), dict(type='PSPHead'), dict(type='ASPPHead', in_index=3)],
)
def test_heads_of_the_last_level(head):
    (said,) = found(check_levels, segmentor(head))
    assert 'level 0, level 1, level 2' in said and 'Set it to (3,)' in said
    assert found(check_levels, segmentor({**head, 'in_index': 0}, out_indices=(3,))) == []


def test_an_auxiliary_head_uses_a_level():
    auxiliary = dict(HEAD, type='FCNHead', in_channels=24, in_index=2, num_convs=1)
    (said,) = found(check_levels, segmentor(dict(type='PSPHead'), auxiliary))
    assert 'level 0, level 1:' in said and 'Set it to (2, 3)' in said


@pytest.mark.parametrize('start, idle', [(0, None), (1, 'level 0'), (2, 'level 0, level 1')])
def test_a_pyramid_that_starts_later(start, idle):
    cfg = load_config('retinanet_cyclemlp_demo')
    cfg.model.backbone.update(arch=ROW, out_indices=(0, 1, 2, 3))
    cfg.model.neck.update(in_channels=[8, 16, 24, 32], start_level=start, num_outs=5)
    said = found(check_levels, cfg)
    assert (
        (idle in said[0] and f'Set it to {tuple(range(start, 4))}' in said[0]) if idle else not said
    )


def test_a_classifier_with_all_levels():
    cfg = load_config('cyclemlp_demo')
    cfg.model.backbone.update(arch=ROW, out_indices=(1, 3))
    cfg.model.head.in_channels = 32
    (said,) = found(check_levels, cfg)
    assert 'level 1:' in said and 'Set it to (3,)' in said


def test_without_output_norms_nothing_is_idle():
    assert found(check_levels, segmentor(dict(type='PSPHead'), out_norms=False)) == []


@pytest.mark.parametrize(
    'name',
    [p.stem for p in sorted(configs_dir().glob('*.py')) if 'demo' in p.stem or 'tiny' in p.stem],
)
def test_shipped_configs_use_all_levels(name):
    cfg = load_config(name)
    with torch.device('cpu'):
        assert found(check_levels, cfg) == []


@pytest.mark.parametrize(
    'config, constructor, said',
    [
        ('fpn_cyclemlp_b1_256x256_600i_small', 'LearningRateDecayOptimizerConstructor', 'ConvNeXt'),
        ('retinanet_cyclemlp_demo', 'mmdet.LearningRateDecayOptimizerConstructor', 'ConvNeXt'),
        ('cyclemlp_demo', 'mmseg.LayerDecayOptimizerConstructor', 'ConvNeXt'),
        ('cyclemlp_demo', 'LearningRateDecayOptimWrapperConstructor', None),
        ('retinanet_cyclemlp_demo', None, None),
    ],
)
def test_constructors_of_layer_decay(config, constructor, said):
    cfg = load_config(config)
    cfg.optim_wrapper.constructor = constructor
    lines = found(check_layer_decay, cfg)
    assert len(lines) == (said is not None)
    assert said is None or (said in lines[0] and 'layer_decay_rate' in lines[0])
