"""Learning rates of layer-wise decay, and the depths of all families."""

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from toy_models import ARCH

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.errors import UserError

pytest.importorskip('cyclemlp_mm.engine.layer_decay')  # which needs mmpretrain


def settings(rate, constructor='LayerDecayOptimWrapperConstructor'):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        constructor=constructor,
        paramwise_cfg=dict(layer_decay_rate=rate, norm_decay_mult=0.0),
    )


def model_of(cfg):
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', ['retinanet_{}_fpn_1x_coco', 'fpn_{}_512x512_40k_ade20k'])
def test_rates_by_hand(name):
    """rate ** (layers from the top): CycleMLP-B1 has 2 + 2 + 4 + 2 blocks."""
    model = model_of(load_config(name.format('cyclemlp_b1')))
    groups = build_optim_wrapper(model, settings(0.9)).optimizer.param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    found = {n: rates[id(p)] for n, p in model.named_parameters() if id(p) in rates}
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    layers = {'stem.proj.weight': 11, 'stages.2.1.mlp.fc1.weight': 5, 'stages.3.1.norm2.bias': 1}
    for weight, number in layers.items():
        assert found[f'backbone.{weight}'] == pytest.approx(1e-3 * 0.9**number)
    others = [rate for n, rate in found.items() if not n.startswith('backbone.')]
    assert others and set(others) == {1e-3}


def test_equals_mmpretrains_own_for_a_classifier():
    model = model_of(load_config('cyclemlp_b1_in1k'))
    own = settings(0.75, 'LearningRateDecayOptimWrapperConstructor')
    ours, theirs = (
        [(g['param_name'], g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups]
        for wrapper in (build_optim_wrapper(model, settings(0.75)), build_optim_wrapper(model, own))
    )
    assert ours == theirs


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.9'])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(UserError, match='layer_decay_rate'):
        build_optim_wrapper(model_of(load_config('cyclemlp_demo')), settings(rate))


def test_other_backbones_are_refused():
    cfg = load_config('cyclemlp_demo')
    cfg.model.backbone = dict(type='MobileNetV3', _scope_='mmpretrain')
    cfg.model.head.in_channels = 576
    with pytest.raises(UserError, match='get_layer_depth'):
        build_optim_wrapper(model_of(cfg), settings(0.9))


ROWS = {
    'CycleMLP': dict(arch=ARCH),
    'MPViT': dict(
        arch=dict(depths=(1, 2, 1, 1), widths=(8, 16, 24, 32), paths=(2, 2, 2, 2), mlp_ratio=1)
    ),
    'DenseRepMLPNet': dict(
        arch=dict(channels=[8, 16, 32, 64], depths=[1, 2, 1, 1], sharesets_nums=[1, 4, 8, 16]),
        img_size=64,
    ),
}
#: Parameters by their depth.
DEPTHS = {
    'CycleMLP': """
        0 stem.proj.weight  1 stages.0.0.norm1.weight  1 downsamples.1.proj.weight
        4 stages.3.0.mlp.fc1.bias  5 norm0.weight  5 norm3.bias""",
    'MPViT': """
        0 stem.0.conv.weight  0 stages.0.embeds.0.depthwise.weight
        1 stages.0.paths.1.position.weight  3 stages.1.paths.0.layers.1.norm1.weight
        3 stages.1.aggregate.conv.weight  3 stages.2.embeds.0.depthwise.weight
        5 stages.3.paths.0.layers.0.qkv.weight""",
    'DenseRepMLPNet': """
        0 patch_embed.projection.weight  1 stages.0.0.norm1.weight
        1 downsample_layers.0.conv.weight  3 stages.1.1.repmlp_block.fc3.weight
        4 downsample_layers.2.conv.weight  5 stages.3.0.norm1.bias  6 final_norm.weight
        6 norm1.weight""",
}


@pytest.mark.parametrize('family', ROWS)
def test_layer_depths(family):
    backbone = MODELS.build(dict(type=family, **ROWS[family]))
    number = sum(backbone.depths) + 2
    words = DEPTHS[family].split()
    for depth, name in zip(map(int, words[::2]), words[1::2], strict=True):
        assert name in dict(backbone.named_parameters()), name
        assert backbone.get_layer_depth(name) == (depth, number)
        assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, number)
    assert backbone.get_layer_depth('head.fc.weight', 'backbone.') == (number - 1, number)
    found = {backbone.get_layer_depth(name)[0] for name, _ in backbone.named_parameters()}
    assert found - {number - 1} == set(range(number - 1))
