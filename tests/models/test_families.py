"""What every family's backbone does."""

import numpy as np
import pytest
import torch
from families import CFGS, CYCLE, FAMILIES, MPVIT, REPMLP, assert_equal_levels, build, step
from torch import nn

from cyclemlp_mm.models import CycleMLP, MPViT

SIZES = [(32, 32), (33, 47), (75, 101)]
every_family = pytest.mark.parametrize('family', FAMILIES)


@pytest.mark.parametrize('size', SIZES)
@every_family
def test_any_size_from_32(family, size):
    model = build(family).eval()
    image = torch.randn(2, 3, *size)
    levels = model(image)
    for a, b in zip(levels, model(image.to(memory_format=torch.channels_last)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert model.out_strides == (4, 8, 16, 32)
    assert [level.shape[1] for level in levels] == list(model.out_channels)
    arch = CFGS[family]['arch']
    widths = arch.get('widths') or arch['channels']
    assert model.out_channels == tuple(widths[1:] + widths[-1:] if family == 'mpvit' else widths)
    for level, stride in zip(levels, model.out_strides, strict=True):
        assert level.is_contiguous()
        for cells, side in zip(level.shape[2:], size):
            # CycleMLP's stem has a border of 2 for a 7x7 kernel.
            less = family in ('reweighted', 'summed')
            assert -(-side // stride) - less <= cells <= -(-side // stride)


@every_family
def test_wrong_images_are_refused(family):
    model = build(family)
    for shape in ((3, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3)):
        with pytest.raises(ValueError, match=r'\(B, 3, H, W\)'):
            model(torch.randn(*shape))
    for size in ((31, 64), (64, 8), (1, 1)) if family != 'repmlp' else ():
        with pytest.raises(ValueError, match='at least 32x32'):
            model(torch.randn(1, 3, *size))


@every_family
def test_other_image_channels(family):
    assert len(build(family, in_channels=4)(torch.randn(2, 4, 40, 40))) == 4


@pytest.mark.parametrize(
    'out_indices, levels',
    [((1, 2, 3), (1, 2, 3)), (-1, (3,)), ((0, -1), (0, 3)), ([0, 1], (0, 1)), (2, (2,))],
)
@every_family
def test_only_what_is_returned_is_built(family, out_indices, levels):
    model = build(family, out_indices=out_indices)
    assert model.out_indices == levels and len(model.stages) == levels[-1] + 1
    norms = [name for name, _ in model.named_children() if 'norm' in name and name[-1].isdigit()]
    assert norms == [f'norm{i}' for i in levels if family != 'repmlp' or i < 3]
    outputs = model(torch.randn(2, 3, 64, 64))
    assert [level.shape[1] for level in outputs] == list(model.out_channels)
    sum(level.square().mean() for level in outputs).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


ALL = ' '.join(FAMILIES)
NO_RATES = ('0.1', None, True, -0.1, 1, float('nan'))
NO_KERNELS = ([2], (3, 4), (3, 3), (), 3, (0,), (-1,), ('3',), '3')


def without(arch, key):
    return {k: v for k, v in arch.items() if k != key}


@pytest.mark.parametrize(
    'families, name, value, error, message',
    [
        ('summed', 'out_indices', (0, 4), ValueError, '-4 to 3'),
        ('summed', 'out_indices', (), ValueError, 'different ints'),
        ('summed', 'out_indices', (2, 1), ValueError, 'fine to coarse'),
        ('summed', 'out_indices', (3, -1), ValueError, 'different ints'),
        ('summed', 'out_indices', '0123', TypeError, 'must be ints'),
        ('summed', 'out_indices', True, TypeError, 'int'),
        ('summed', 'arch', 'b9', ValueError, "CycleMLP has no arch 'b9'; it has b1, b2"),
        ('mpvit', 'arch', 'b1', ValueError, "MPViT has no arch 'b1'; it has tiny, xsmall"),
        ('repmlp', 'arch', 'tiny', ValueError, "no arch 'tiny'"),
        ('summed', 'arch', 3, TypeError, 'must be one of'),
        ('summed', 'arch', without(CYCLE, 'widths'), ValueError, r"\['widths'\] are missing"),
        ('summed', 'arch', dict(CYCLE, heads=4), ValueError, r"\['heads'\] are unknown"),
        ('summed', 'arch', dict(CYCLE, depths=2), ValueError, 'arch depths must be 4 .* but got 2'),
        ('summed', 'arch', dict(CYCLE, widths=(8, 12, 18, 20)), ValueError, 'multiples of 4'),
        ('summed', 'arch', dict(CYCLE, downsample='pool'), ValueError, 'downsample'),
        ('summed', 'arch', dict(CYCLE, reweight='no'), TypeError, "reweight .* but got 'no'"),
        ('mpvit', 'arch', dict(MPVIT, paths=(1, 0, 1, 1)), ValueError, '4 positive ints'),
        ('mpvit', 'arch', dict(MPVIT, widths=(8, 16, 20, 24)), ValueError, 'multiples of 8'),
        ('mpvit', 'arch', dict(MPVIT, mlp_ratio=0), ValueError, 'mlp_ratio'),
        ('repmlp', 'arch', dict(REPMLP, depths=[1, 1]), ValueError, '4 positive ints'),
        ('repmlp', 'arch', dict(REPMLP, channels=[8, 16, 32, 0]), ValueError, 'arch channels must'),
        ('repmlp', 'arch', dict(REPMLP, sharesets_nums=[1, 3, 8, 16]), ValueError, 'sharesets'),
        (ALL, 'with_cp', 'False', TypeError, 'with_cp'),
        ('summed repmlp', 'out_norms', 0, TypeError, 'out_norms'),
        ('mpvit repmlp', 'norm_eval', None, TypeError, 'norm_eval'),
        (ALL, 'frozen_stages', 5, ValueError, 'frozen_stages'),
        (ALL, 'in_channels', 0, ValueError, 'in_channels'),
        (ALL, 'in_channels', '3', TypeError, 'in_channels'),
        (ALL, 'norm_layer', 'LN', TypeError, 'norm_layer'),
        ('reweighted', 'mixer_backend', 'fast', ValueError, 'backend must'),
        *(('summed mpvit', 'drop_path_rate', r, ValueError, 'drop_path_rate') for r in NO_RATES),
        ('repmlp', 'deploy', 'False', TypeError, 'deploy'),
        ('repmlp', 'globalperceptron_ratio', 0, ValueError, 'globalperceptron_ratio'),
        ('repmlp', 'img_size', 60, ValueError, 'multiples of 32'),
        ('repmlp', 'img_size', None, ValueError, 'img_size must be multiples of 32, but got None'),
        *(
            ('repmlp', 'norm_cfg', dict(type=kind, num_groups=2), ValueError, 'must be a BatchNorm')
            for kind in ('GN', nn.GroupNorm)
        ),
        *(
            ('repmlp', 'norm_cfg', {'type': 'BN', key: False}, ValueError, key)
            for key in ('track_running_stats', 'affine')
        ),
        *(
            ('repmlp', 'reparam_conv_kernels', kernels, ValueError, 'kernels .* different odd')
            for kernels in NO_KERNELS
        ),
    ],
)
def test_wrong_settings(families, name, value, error, message):
    for family in families.split():
        with pytest.raises(error, match=message):
            build(family, **{name: value})


@pytest.mark.parametrize('family', ['summed', 'mpvit'])
def test_drop_path_grows_linearly(family):
    model = build(family, drop_path_rate=0.4)
    if family == 'mpvit':
        paths = [[stage.paths[i].layers for stage in model.stages] for i in range(2)]
    else:
        paths = [model.stages]
    for stages in paths:
        rates = [block.drop_path.drop_prob for stage in stages for block in stage]
        assert rates == pytest.approx(np.linspace(0, 0.4, 4))
    image = torch.randn(4, 3, 64, 64)
    assert not torch.equal(model(image)[3], model(image)[3])
    assert torch.equal(model.eval()(image)[3], model(image)[3])


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
@every_family
def test_freezing_holds_through_train(family, frozen_stages):
    model = build(family, frozen_stages=frozen_stages)
    assert model.train() is model
    frozen = ['stem.', 'patch_embed.'] * (frozen_stages >= 0)
    for i in range(frozen_stages):
        frozen += [f'stages.{i}.', f'downsamples.{i}.', f'downsample_layers.{i - 1}.', f'norm{i}.']
    if frozen_stages == 4:
        frozen.append('final_norm.')
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    assert [stage.training for stage in model.stages] == [i >= frozen_stages for i in range(4)]
    before = {n: b.clone() for n, b in model.named_buffers()}
    levels = model(torch.randn(2, 3, 64, 64))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith(tuple(frozen)), name
    if frozen_stages < 4:
        sum(level.mean() for level in levels).backward()


@pytest.mark.parametrize('family', ['mpvit', 'repmlp'])
def test_norm_eval_keeps_statistics_and_trains_the_rest(family):
    model = build(family, norm_eval=True).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    sum(level.square().mean() for level in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('momentum', [0.1, None])
@every_family
def test_checkpointing_changes_nothing_but_memory(family, momentum):
    """Without a momentum, the statistics are averages over all batches: their number matters."""
    kwargs = dict(drop_path_rate=0.3) if family != 'repmlp' else {}
    if family in ('mpvit', 'repmlp'):
        kwargs['norm_cfg'] = dict(type='BN', momentum=momentum)
    image = torch.randn(2, 3, 70, 90, dtype=torch.float64)
    results = []
    for with_cp in (False, True):
        torch.manual_seed(3)
        model = build(family, with_cp=with_cp, **kwargs).double().train()
        buffers = dict(model.named_buffers())
        results.append([])
        for _ in range(2):
            levels, grads = step(model, image)
            results[-1] += [*levels, *grads.values()]
        assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
        results[-1] += buffers.values()
    assert_equal_levels(*results)


def test_a_recomputation_that_fails_leaves_the_statistics():
    model = build('repmlp', with_cp=True).train()
    loss = sum(level.mean() for level in model(torch.randn(2, 3, 64, 64)))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def fail(*_):
        raise RuntimeError('out of memory')

    model.stages[1][0].norm2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        loss.backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


@pytest.mark.parametrize('family', ['summed', 'repmlp'])
def test_out_norms_off_returns_raw_maps(family):
    with_norms, without = build(family).eval(), build(family, out_norms=False).eval()
    norms = ('norm', 'final_norm')
    assert not any(name.startswith(norms) for name in without.state_dict())
    state = with_norms.state_dict()
    without.load_state_dict({n: t for n, t in state.items() if not n.startswith(norms)})
    image = torch.randn(1, 3, 64, 64)
    for i, (normed, raw) in enumerate(zip(with_norms(image), without(image), strict=True)):
        if family == 'repmlp':
            again = (with_norms.final_norm if i == 3 else getattr(with_norms, f'norm{i}'))(raw)
        else:
            again = getattr(with_norms, f'norm{i}')(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.allclose(again, normed, atol=1e-6)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(32, 64), (256, 320)])
@pytest.mark.parametrize('family', ['reweighted', 'summed'])
def test_no_image_at_all(family, size, training):
    levels = build(family).train(training)(torch.randn(0, 3, *size))
    assert [tuple(level.shape[:2]) for level in levels] == [(0, c) for c in CYCLE['widths']]


def test_initial_weights():
    block, stage = CycleMLP('b1').stages[2][0], MPViT('small').stages[2]
    linears = [block.mixer.sfc_h, block.mixer.mlp_c, block.mlp.fc1, stage.paths[0].layers[0].qkv]
    for layer in linears:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert stage.aggregate.conv.weight.std().item() == pytest.approx((2 / 288) ** 0.5, rel=0.05)
    for layer in (block.mixer.sfc_w, block.mlp.fc2, stage.paths[0].relative[1]):
        assert isinstance(layer.bias, nn.Parameter) and layer.bias.abs().max() == 0
