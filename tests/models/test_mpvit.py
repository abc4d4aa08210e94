import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mpvit_cases import TINY, copy_weights, worst
from plain_mpvit import PlainMPViT, randomise_norms
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.measure import saved_for_backward
from cyclemlp_mm.models import MPViT

# Parameters of the classifier (backbone and 1000-way Linear) and multiply-adds at 224², from the
# published model zoo.
PUBLISHED_SIZE = {
    'tiny': (5_843_736, 1.65e9),
    'xsmall': (10_573_448, 2.97e9),
    'small': (22_892_400, 4.80e9),
    'base': (74_845_976, 16.4e9),
}


@pytest.mark.parametrize('arch', MPViT.arch_zoo)
def test_sizes_are_the_published_ones(arch):
    with torch.device('meta'):
        model = MPViT(arch, out_indices=3).eval()
        image = torch.empty(1, 3, 224, 224)
    backbone = sum(p.numel() for p in model.parameters())
    parameters, operations = PUBLISHED_SIZE[arch]
    assert backbone + 1000 * model.out_channels[-1] + 1000 == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert counter.get_total_flops() / 2 == pytest.approx(operations, rel=0.01)


def test_is_in_the_root_registry():
    assert isinstance(MODELS.build(dict(type='MPViT', arch='tiny')), MPViT)


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (64, 100), (75, 101)])
def test_any_size_from_32(size):
    model = MPViT(TINY).eval()
    levels = model(torch.randn(2, 3, *size))
    assert [level.shape[1] for level in levels] == list(model.out_channels) == [16, 16, 24, 24]
    assert model.out_strides == (4, 8, 16, 32)
    for level, stride in zip(levels, model.out_strides, strict=True):
        assert level.is_contiguous()
        assert level.shape[2:] == tuple(-(-side // stride) for side in size)


@pytest.mark.parametrize('training', [False, True])
def test_equals_the_plain_form_in_float64(training):
    plain = randomise_norms(PlainMPViT(TINY)).double().train(training)
    ours = copy_weights(plain, MPViT(TINY).double()).train(training)
    image = torch.randn(2, 3, 77, 106, dtype=torch.float64)
    results = []
    for model in (ours, plain):
        levels = model(image)
        sum(torch.sin(level).sum() for level in levels).backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        results.append((levels, grads, dict(model.named_buffers())))
    (levels, grads, buffers), (theirs, their_grads, their_buffers) = results
    assert all(worst(a, b) < 1e-12 for a, b in zip(levels, theirs, strict=True))
    their_grads = MPViT.published_format.to_ours(their_grads)
    assert set(grads) == set(their_grads)
    largest = max(grad.abs().max() for grad in their_grads.values())
    for name, grad in grads.items():
        theirs = their_grads[name]
        # The gradient of a bias ahead of a BatchNorm is 0, but for rounding.
        assert (grad - theirs).abs().max() < 1e-9 * theirs.abs().max() + 1e-14 * largest, name
    for name, buffer in MPViT.published_format.to_ours(their_buffers).items():
        assert worst(buffers[name].double(), buffer.double()) < 1e-12, name


def test_close_to_the_plain_form_in_bfloat16_autocast():
    plain = randomise_norms(PlainMPViT(TINY)).eval()
    ours = copy_weights(plain, MPViT(TINY)).eval()
    image = torch.randn(2, 3, 96, 128)
    exact = plain(image)
    with torch.autocast('cpu', torch.bfloat16):
        mine, theirs = ours(image), plain(image)
        sum(level.float().square().mean() for level in ours.train()(image)).backward()
    for a, b, e in zip(mine, theirs, exact, strict=True):
        assert worst(a.float(), e) <= 1.5 * worst(b.float(), e) + 1e-3
    assert all(p.grad.isfinite().all() for p in ours.parameters())


def test_keeps_less_for_backward_than_the_plain_form_and_grows_with_pixels():
    arch = MPViT.arch_zoo['small']
    plain, ours = PlainMPViT(arch).train(), MPViT('small').train()
    kept = {}
    for side in (128, 256):
        image = torch.randn(1, 3, side, side)
        kept[side] = saved_for_backward(lambda i=image: ours(i), ours)
        assert kept[side] <= 0.8 * saved_for_backward(lambda i=image: plain(i), plain)
    # 4 times the pixels; MLPs keep less per pixel of a large map, so it may grow by less.
    assert kept[256] <= 4 * 1.03 * kept[128]


@pytest.mark.parametrize('out_indices, levels', [((1, 2, 3), (1, 2, 3)), (-1, (3,)), (0, (0,))])
def test_only_what_is_returned_is_built(out_indices, levels):
    model = MPViT(TINY, out_indices=out_indices)
    assert model.out_indices == levels and len(model.stages) == levels[-1] + 1
    outputs = model(torch.randn(2, 3, 64, 64))
    assert [o.shape[1] for o in outputs] == list(model.out_channels)
    sum(level.square().mean() for level in outputs).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    'arch, error, message',
    [
        ('b1', ValueError, "no arch 'b1'; it has tiny, xsmall"),
        (3, TypeError, 'a name'),
        ({k: v for k, v in TINY.items() if k != 'paths'}, ValueError, r"\['paths'\] are missing"),
        (dict(TINY, heads=4), ValueError, r"\['heads'\] are unknown"),
        (dict(TINY, depths=(1, 1, 1)), ValueError, '4 positive ints, one per stage'),
        (dict(TINY, paths=(1, 0, 1, 1)), ValueError, '4 positive ints, one per stage'),
        (dict(TINY, widths=(8, 16, 20, 24)), ValueError, 'multiples of 8'),
        (dict(TINY, mlp_ratio=0), ValueError, 'mlp_ratio'),
    ],
)
def test_wrong_arch(arch, error, message):
    with pytest.raises(error, match=message):
        MPViT(arch)


def test_other_arguments_are_checked():
    with pytest.raises(TypeError, match='out_norms'):
        MPViT(TINY, out_norms=True)
    with pytest.raises(TypeError, match="the key 'type'"):
        MPViT(TINY, norm_cfg='BN')
    with pytest.raises(KeyError, match='NoSuchNorm'):
        MPViT(TINY, norm_cfg=dict(type='NoSuchNorm'))
    with pytest.raises(ValueError, match='at least 32x32'):
        MPViT(TINY)(torch.randn(1, 3, 31, 64))


# The names are mmcv's, which registers them for all. LN is of the last dimension.
@pytest.mark.parametrize(
    'kind', ['LN', 'ReLU', 'BN1d', 'BN3d', 'IN1d', nn.LayerNorm, nn.Conv2d, int, 3]
)
def test_layers_that_norm_no_maps_are_refused(kind):
    pytest.importorskip('mmcv.cnn')
    with pytest.raises(ValueError, match=r'norm_cfg type .* is no norm of \(B, C, H, W\) maps'):
        MPViT(TINY, norm_cfg=dict(type=kind))


@pytest.mark.parametrize('kind', ['IN', 'IN2d', 'LN2d', nn.BatchNorm2d, nn.InstanceNorm2d])
def test_norms_of_maps_are_taken_by_name_or_class(kind):
    pytest.importorskip('mmcv.cnn')
    if kind == 'LN2d':
        kind = pytest.importorskip('mmpretrain.models.utils').LayerNorm2d
    model = MPViT(TINY, norm_cfg=dict(type=kind))
    assert all(level.isfinite().all() for level in model(torch.randn(2, 3, 64, 64)))


def test_group_norm_by_its_class():
    model = MPViT(TINY, norm_cfg=dict(type=nn.GroupNorm, num_groups=2))
    assert model.stem[0].norm.num_groups == 2


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        (dict(with_cp='False'), TypeError, 'with_cp must be True or False'),
        (dict(norm_eval=1), TypeError, 'norm_eval must be True or False'),
        (dict(norm_cfg=dict(type='BN', requires_grad='False')), TypeError, 'requires_grad must'),
        (dict(in_channels='3'), ValueError, 'in_channels must be a positive int'),
        (dict(drop_path_rate='0.1'), ValueError, 'drop_path_rate must be a number'),
        (dict(arch=dict(TINY, depths=2)), ValueError, 'depths must be 4 positive ints'),
        (dict(arch=dict(TINY, mlp_ratio='2')), ValueError, 'mlp_ratio must be a positive int'),
    ],
)
def test_arguments_of_another_type_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        MPViT(**{'arch': TINY, **kwargs})


def test_drop_path_grows_linearly_over_layers():
    model = MPViT(TINY, drop_path_rate=0.4)
    for path in range(2):
        rates = [
            layer.drop_path.drop_prob
            for stage in model.stages
            for layer in stage.paths[path].layers
        ]
        assert rates == pytest.approx(np.linspace(0, 0.4, 5))
    image = torch.randn(4, 3, 64, 64)
    assert not torch.equal(model(image)[3], model(image)[3])
    assert torch.equal(model.eval()(image)[3], model(image)[3])


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_freezing_holds_through_train(frozen_stages):
    model = MPViT(TINY, frozen_stages=frozen_stages, drop_path_rate=0.2)
    assert model.train() is model
    frozen = ['stem.'] * (frozen_stages >= 0) + [f'stages.{i}.' for i in range(frozen_stages)]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    before = {n: b.clone() for n, b in model.named_buffers()}
    levels = model(torch.randn(2, 3, 64, 64))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith(tuple(frozen)), name
    if frozen_stages < 4:
        sum(level.mean() for level in levels).backward()


def test_norm_eval_keeps_statistics_and_trains_the_rest():
    model = randomise_norms(MPViT(TINY, norm_eval=True)).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    sum(level.square().mean() for level in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    'norm_cfg, kind',
    [
        (dict(type='SyncBN'), nn.SyncBatchNorm),
        (dict(type='SyncBNOrBN', eps=1e-3), nn.BatchNorm2d),
        (dict(type='GN', num_groups=2), nn.GroupNorm),
        (dict(type='BN', requires_grad=False), nn.BatchNorm2d),
    ],
)
def test_norm_cfg_reaches_every_norm(norm_cfg, kind):
    model = MPViT(TINY, norm_cfg=norm_cfg)
    found = [m for n, m in model.named_modules() if n.endswith('.norm')]
    assert len(found) == 2 + sum(4 + paths for paths in TINY['paths'])
    assert all(type(m) is kind for m in found)
    assert all(m.eps == norm_cfg.get('eps', 1e-5) for m in found)
    trained = norm_cfg.get('requires_grad', True)
    assert all(p.requires_grad == trained for m in found for p in m.parameters())
    if kind is not nn.SyncBatchNorm:  # which needs a GPU
        levels = model(torch.randn(2, 3, 64, 64))
        assert all(level.isfinite().all() for level in levels)


def test_checkpointing_changes_nothing_but_memory():
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(3)
        model = MPViT(TINY, with_cp=with_cp, drop_path_rate=0.3).double()
        torch.manual_seed(4)
        sum(level.square().sum() for level in model(image)).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(worst(a, b) < 1e-10 for a, b in zip(*grads, strict=True))


def test_initial_weights():
    stage = MPViT('small').stages[2]
    assert stage.paths[0].layers[0].qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert stage.aggregate.conv.weight.std().item() == pytest.approx((2 / 288) ** 0.5, rel=0.05)
    assert stage.paths[0].relative[1].bias.abs().max() == 0
