import copy

import families
import pytest
import torch
from families import build, step
from mixer_cases import worst
from plain_mpvit import PlainMPViT, randomise_norms
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.measure import saved_for_backward
from cyclemlp_mm.models import MPViT
from cyclemlp_mm.models.conv_norm import ConvNorm

MPVIT = dict(families.MPVIT, depths=(1, 2, 1, 1), paths=(2, 3, 2, 2))

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


def plain_and_ours():
    """A plain transcription and our model, with the same weights."""
    plain, ours = randomise_norms(PlainMPViT(MPVIT)), build('mpvit', arch=MPVIT)
    ours.load_state_dict(MPViT.published_format.to_ours(plain.state_dict()))
    return plain, ours


@pytest.mark.parametrize('training', [False, True])
def test_equals_the_plain_form_in_float64(training):
    plain, ours = (model.double().train(training) for model in plain_and_ours())
    image = torch.randn(2, 3, 77, 106, dtype=torch.float64)
    (levels, grads), (theirs, their_grads) = step(ours, image), step(plain, image)
    assert all(worst(a, b) < 1e-12 for a, b in zip(levels, theirs, strict=True))
    their_grads = MPViT.published_format.to_ours(their_grads)
    assert set(grads) == set(their_grads)
    largest = max(grad.abs().max() for grad in their_grads.values())
    for name, grad in grads.items():
        theirs = their_grads[name]
        # The gradient of a bias ahead of a BatchNorm is 0, but for rounding.
        assert (grad - theirs).abs().max() < 1e-9 * theirs.abs().max() + 1e-14 * largest, name
    buffers = dict(ours.named_buffers())
    for name, buffer in MPViT.published_format.to_ours(dict(plain.named_buffers())).items():
        assert worst(buffers[name].double(), buffer.double()) < 1e-12, name


def test_close_to_the_plain_form_in_bfloat16_autocast():
    plain, ours = (model.eval() for model in plain_and_ours())
    image = torch.randn(2, 3, 96, 128)
    exact = plain(image)
    with torch.autocast('cpu', torch.bfloat16):
        mine, theirs = ours(image), plain(image)
        sum(level.float().square().mean() for level in ours.train()(image)).backward()
    for a, b, e in zip(mine, theirs, exact, strict=True):
        assert worst(a.float(), e) <= 1.5 * worst(b.float(), e) + 1e-3
    assert all(p.grad.isfinite().all() for p in ours.parameters())


def test_gradients_of_norms_in_eval_mode_in_half_precision():
    torch.manual_seed(0)
    layer = ConvNorm(64, 64).eval()
    with torch.no_grad():  # such that the mean of the input cancels
        layer.conv.weight -= layer.conv.weight.mean(1, keepdim=True)
    x, grad = 10 + torch.randn(2, 4, 4, 64), torch.randn(2, 4, 4, 64)
    hooked = copy.deepcopy(layer)  # goes layer by layer
    hooked.norm.register_forward_hook(lambda *_: None)
    exact = copy.deepcopy(layer).double()
    exact(x.double()).backward(grad.double())
    for module in (layer, hooked):
        module.half()(x.half()).backward(grad.half())
    error, plain = ((m.norm.weight.grad - exact.norm.weight.grad).norm() for m in (layer, hooked))
    assert error <= 1.5 * plain


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


# The names are mmcv's, which registers them for all. LN is of the last dimension.
@pytest.mark.parametrize(
    'norm_cfg, error, message',
    [
        *(
            (dict(type=kind), ValueError, r'norm_cfg type .* is not a norm of \(B, C, H, W\) maps')
            for kind in ('LN', 'ReLU', 'BN1d', nn.LayerNorm, nn.Conv2d)
        ),
        ('BN', TypeError, "the key 'type'"),
        (dict(type='NoSuchNorm'), KeyError, 'NoSuchNorm'),
        (dict(type='BN', requires_grad='False'), TypeError, 'requires_grad must'),
    ],
)
def test_layers_that_norm_no_maps_are_refused(norm_cfg, error, message):
    pytest.importorskip('mmcv.cnn')
    with pytest.raises(error, match=message):
        build('mpvit', norm_cfg=norm_cfg)


@pytest.mark.parametrize(
    'norm_cfg, kind',
    [
        (dict(type='SyncBN'), nn.SyncBatchNorm),
        (dict(type='SyncBNOrBN', eps=1e-3), nn.BatchNorm2d),
        (dict(type='GN', num_groups=2), nn.GroupNorm),
        (dict(type=nn.GroupNorm, num_groups=2), nn.GroupNorm),
        (dict(type='BN', requires_grad=False), nn.BatchNorm2d),
        *((dict(type=kind), None) for kind in ('IN', 'IN2d', nn.BatchNorm2d, nn.InstanceNorm2d)),
        (dict(type='LN2d'), None),
    ],
)
def test_norm_cfg_reaches_every_norm(norm_cfg, kind):
    pytest.importorskip('mmcv.cnn')
    if norm_cfg['type'] == 'LN2d':
        norm_cfg = dict(type=pytest.importorskip('mmpretrain.models.utils').LayerNorm2d)
    model = build('mpvit', arch=MPVIT, norm_cfg=norm_cfg)
    found = [m for n, m in model.named_modules() if n.endswith('.norm')]
    assert len(found) == 2 + sum(4 + paths for paths in MPVIT['paths'])
    if kind is not None:
        assert all(type(m) is kind and m.eps == norm_cfg.get('eps', 1e-5) for m in found)
    trained = norm_cfg.get('requires_grad', True)
    assert all(p.requires_grad == trained for m in found for p in m.parameters())
    if kind is not nn.SyncBatchNorm:  # which needs a GPU
        levels = model(torch.randn(2, 3, 64, 64))
        assert all(level.isfinite().all() for level in levels)
