import warnings

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

import cyclemlp_mm  # noqa: F401 - registers the backbone
from cyclemlp_mm.models import CycleMLP

TINY = dict(
    depths=(1, 2, 1, 1),
    widths=(8, 12, 16, 20),
    mlp_ratios=(2, 2, 1, 1),
    reweight=True,
    downsample='conv',
)

# Parameters of the classifier (backbone, last norm, 1000-way Linear) and multiply-adds at 224²,
# from the published model zoo; T, S and B are reconstructed to meet them.
PUBLISHED_SIZE = {
    'b1': (15.16e6, 2.1e9),
    'b2': (26.80e6, 3.9e9),
    'b3': (38e6, 6.9e9),
    'b4': (52e6, 10.1e9),
    'b5': (76e6, 12.3e9),
    't': (28e6, 4.4e9),
    's': (50e6, 8.5e9),
    'b': (88e6, 15.2e9),
}


@pytest.mark.parametrize('arch', CycleMLP.arch_zoo)
def test_parameters_are_the_published_ones(arch):
    with torch.device('meta'):
        model = CycleMLP(arch, out_indices=3)
    backbone = sum(p.numel() for p in model.parameters())
    count = backbone + 1000 * model.out_channels[-1] + 1000
    published, _ = PUBLISHED_SIZE[arch]
    digits = 2 if arch in ('b1', 'b2') else 0  # as many as were published
    assert round(count / 1e6, digits) == pytest.approx(published / 1e6)


@pytest.mark.parametrize('arch', CycleMLP.arch_zoo)
def test_flops_are_the_published_ones(arch):
    with torch.device('meta'):
        model = CycleMLP(arch, out_indices=3)
        image = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    multiply_adds = counter.get_total_flops() / 2  # the counter counts both
    assert multiply_adds == pytest.approx(PUBLISHED_SIZE[arch][1], rel=0.015)


def test_is_in_the_root_registry():
    assert isinstance(MODELS.build(dict(type='CycleMLP', arch='b1')), CycleMLP)


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (63, 32), (64, 100), (75, 101)])
@pytest.mark.parametrize('downsample', ['conv', 'patch_merging'])
def test_any_size_from_32(size, downsample):
    model = CycleMLP(dict(TINY, downsample=downsample)).eval()
    levels = model(torch.randn(2, 3, *size))
    assert [level.shape[1] for level in levels] == list(model.out_channels) == [8, 12, 16, 20]
    assert model.out_strides == (4, 8, 16, 32)
    for level, stride in zip(levels, model.out_strides, strict=True):
        assert level.is_contiguous()
        assert all(abs(cells - side / stride) <= 1 for cells, side in zip(level.shape[2:], size))


@pytest.mark.parametrize('size', [(31, 64), (64, 8), (1, 1)])
def test_smaller_images_are_refused(size):
    with pytest.raises(ValueError, match='at least 32x32'):
        CycleMLP(TINY)(torch.randn(1, 3, *size))


@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r'\(B, 3, H, W\)'):
        CycleMLP(TINY)(torch.randn(*shape))


@pytest.mark.parametrize(
    'out_indices, levels',
    [((1, 2, 3), (1, 2, 3)), (-1, (3,)), ((0, -1), (0, 3)), ([0, 1], (0, 1)), (2, (2,))],
)
def test_only_returned_levels_have_norms(out_indices, levels):
    model = CycleMLP(TINY, out_indices=out_indices)
    assert model.out_indices == levels
    assert [hasattr(model, f'norm{i}') for i in range(4)] == [i in levels for i in range(4)]
    outputs = model(torch.randn(2, 3, 64, 64))
    assert len(outputs) == len(levels)
    sum(level.square().mean() for level in outputs).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    'out_indices, error, message',
    [
        ((0, 4), ValueError, '-4 to 3'),
        (-5, ValueError, '-4 to 3'),
        ((), ValueError, 'one or more'),
        ((2, 1), ValueError, 'fine to coarse'),
        ((3, -1), ValueError, 'each once'),
        ('0123', TypeError, 'sequence of ints'),
        ((0.0, 1), TypeError, 'sequence of ints'),
        (True, TypeError, 'int'),
    ],
)
def test_wrong_out_indices(out_indices, error, message):
    with pytest.raises(error, match=message):
        CycleMLP(TINY, out_indices=out_indices)


@pytest.mark.parametrize(
    'arch, error, message',
    [
        ('b9', ValueError, "no arch 'b9'; it has b1, b2"),
        (3, TypeError, 'a name'),
        ({k: v for k, v in TINY.items() if k != 'widths'}, ValueError, r"\['widths'\] are missing"),
        (dict(TINY, heads=4), ValueError, r"\['heads'\] are unknown"),
        (dict(TINY, depths=(1, 1, 1)), ValueError, '4 positive ints, one per stage'),
        (dict(TINY, widths=(8, 12, 18, 20)), ValueError, 'multiples of 4'),
        (dict(TINY, downsample='pool'), ValueError, 'downsample'),
        (dict(TINY, depths=2), ValueError, 'arch depths must be 4 positive ints, .* but got 2'),
        (dict(TINY, widths={8, 12, 16, 20}), ValueError, 'arch widths must be 4'),
        (dict(TINY, reweight='no'), TypeError, "arch reweight must be True or False, but got 'no'"),
    ],
)
def test_wrong_arch(arch, error, message):
    with pytest.raises(error, match=message):
        CycleMLP(arch)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='norm_layer'):
        CycleMLP(TINY, norm_layer='LN')
    with pytest.raises(ValueError, match='drop_path_rate'):
        CycleMLP(TINY, drop_path_rate=1.0)
    with pytest.raises(ValueError, match='frozen_stages'):
        CycleMLP(TINY, frozen_stages=5)
    with pytest.raises(ValueError, match='in_channels'):
        CycleMLP(TINY, in_channels=0)


@pytest.mark.parametrize('name', ['with_cp', 'out_norms'])
@pytest.mark.parametrize('value', ['False', 0, None])
def test_only_a_bool_is_true_or_false(name, value):
    with pytest.raises(TypeError, match=f'{name} must be True or False, but got {value!r}'):
        CycleMLP(TINY, **{name: value})


@pytest.mark.parametrize('rate', ['0.1', None, True, -0.1, 1, float('nan')])
def test_wrong_drop_path_rates(rate):
    with pytest.raises(ValueError, match=r'drop_path_rate must be a number in \[0, 1\), but got'):
        CycleMLP(TINY, drop_path_rate=rate)


@pytest.mark.parametrize('in_channels', [1, 4])
def test_other_image_channels(in_channels):
    assert len(CycleMLP(TINY, in_channels=in_channels)(torch.randn(1, in_channels, 40, 40))) == 4


def test_drop_path_grows_linearly():
    model = CycleMLP(TINY, drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage]
    assert rates == pytest.approx(np.linspace(0, 0.4, 5))
    torch.manual_seed(0)
    image = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(image)[3], model(image)[3])
    model.eval()
    assert torch.equal(model(image)[3], model(image)[3])


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_freezing_holds_through_train(frozen_stages):
    model = CycleMLP(TINY, frozen_stages=frozen_stages, drop_path_rate=0.2)
    assert model.train() is model
    frozen = []
    if frozen_stages >= 0:
        frozen.append('stem.')
    for i in range(frozen_stages):
        frozen += [f'stages.{i}.', f'downsamples.{i}.', f'norm{i}.']
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    for i, stage in enumerate(model.stages):
        assert stage.training == (i >= frozen_stages)
    if frozen_stages < 4:
        sum(level.mean() for level in model(torch.randn(2, 3, 64, 64))).backward()


def test_checkpointing_changes_nothing_but_memory():
    image = torch.randn(2, 3, 64, 64)
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(3)
        model = CycleMLP(TINY, with_cp=with_cp, drop_path_rate=0.3).double()
        model.train()
        torch.manual_seed(4)
        sum(level.square().sum() for level in model(image.double())).backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], rtol=1e-10, atol=1e-12), name


def test_out_norms_off_returns_raw_maps():
    with_norms, without = CycleMLP(TINY).eval(), CycleMLP(TINY, out_norms=False).eval()
    assert not any(name.startswith('norm') for name in without.state_dict())
    without.load_state_dict(
        {n: t for n, t in with_norms.state_dict().items() if not n.startswith('norm')}
    )
    image = torch.randn(1, 3, 64, 64)
    for i, (normed, raw) in enumerate(zip(with_norms(image), without(image), strict=True)):
        norm = getattr(with_norms, f'norm{i}')
        again = norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.allclose(again, normed, atol=1e-6)


def test_initial_weights():
    model = CycleMLP('b1')
    block = model.stages[2][0]
    for weight in (block.mixer.sfc_h.weight, block.mixer.mlp_c.weight, block.mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mixer.sfc_w.bias.abs().max() == 0 == block.mlp.fc2.bias.abs().max()


def test_does_not_depend_on_the_memory_format():
    model = CycleMLP(TINY).eval()
    image = torch.randn(2, 3, 48, 80)
    plain, channels_last = model(image), model(image.to(memory_format=torch.channels_last))
    for a, b in zip(plain, channels_last, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_state_dict_round_trip_without_warnings(tmp_path):
    model = CycleMLP(TINY)
    torch.save(model.state_dict(), tmp_path / 'ours.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', 'TypedStorage is deprecated')  # PyTorch 2.1's own
        other = CycleMLP(TINY)
        other.load_state_dict(torch.load(tmp_path / 'ours.pth', weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
