"""Learning rates of layer-wise decay, by hand, for each family under each toolbox."""

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.engine.layer_decay import LayerDecayOptimWrapperConstructor
from cyclemlp_mm.errors import UserError

pytest.importorskip('mmpretrain')

#: Number of layers (4, 8 and 18 blocks follow each other), the first and the last one of the
#: backbone, and one in the middle with its place, from 1.
FAMILIES = {
    'cyclemlp_b1': (
        10,
        'stem.proj.weight',
        'stages.2.1.mlp.fc1.weight',
        6,
        'stages.3.1.norm2.bias',
    ),
    'mpvit_tiny': (
        *(8, 'stem.0.conv.weight', 'stages.2.paths.1.layers.2.qkv.weight', 6),
        'stages.3.paths.0.layers.0.proj.weight',
    ),
    'repmlp_b': (
        *(18, 'patch_embed.projection.weight', 'stages.2.4.repmlp_block.fc3.weight', 9),
        'stages.3.1.ffn_block.ffn_fc1.conv.weight',
    ),
}
CONFIGS = {
    'cyclemlp_b1': 'retinanet_{}_fpn_1x_coco fpn_{}_512x512_40k_ade20k {}_in1k',
    'mpvit_tiny': 'retinanet_{}_fpn_1x_coco fpn_{}_256x256_600i_small {}_in1k',
    'repmlp_b': 'retinanet_{}_fpn_1x_coco fpn_{}_512x512_40k_ade20k {}_in1k',
}
PAIRS = [(f, c.format(f)) for f, names in CONFIGS.items() for c in names.split()]


def settings(rate):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=rate, norm_decay_mult=0.0),
    )


def model_of(name):
    cfg = load_config(name)
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)


@pytest.mark.parametrize(('family', 'name'), PAIRS)
def test_rates_by_hand(family, name):
    """rate ** (layers from the top): CycleMLP-B1 has 2 + 2 + 4 + 2 blocks, and so on."""
    blocks, first, middle, place, last = FAMILIES[family]
    model = model_of(name)
    groups = build_optim_wrapper(model, settings(0.9)).optimizer.param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    found = {n: rates[id(p)] for n, p in model.named_parameters() if id(p) in rates}
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert found[f'backbone.{first}'] == pytest.approx(1e-3 * 0.9 ** (blocks + 1))
    assert found[f'backbone.{middle}'] == pytest.approx(1e-3 * 0.9 ** (blocks + 1 - place))
    assert found[f'backbone.{last}'] == pytest.approx(1e-3 * 0.9)
    others = [rate for n, rate in found.items() if not n.startswith('backbone.')]
    assert others and set(others) == {1e-3}


def test_equals_mmpretrains_own_for_a_classifier():
    model = model_of('cyclemlp_b1_in1k')
    own = dict(settings(0.75), constructor='LearningRateDecayOptimWrapperConstructor')
    ours, theirs = (
        [(g['param_name'], g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups]
        for wrapper in (build_optim_wrapper(model, settings(0.75)), build_optim_wrapper(model, own))
    )
    assert ours == theirs


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.9'])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(UserError, match='layer_decay_rate'):
        build_optim_wrapper(model_of('cyclemlp_demo'), settings(rate))


def test_other_backbones_are_refused():
    cfg = load_config('cyclemlp_demo')
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone = dict(type='MobileNetV3', _scope_='mmpretrain')
    cfg.model.head.in_channels = 576
    with pytest.raises(UserError, match='get_layer_depth'):
        LayerDecayOptimWrapperConstructor(*[settings(0.9)], settings(0.9)['paramwise_cfg'])(
            MODELS.build(cfg.model)
        )
