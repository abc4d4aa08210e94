"""Other pseudo-kernels and fewer branches, against a mixer written with ``deform_conv2d``."""

import itertools
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from families import CYCLE, assert_same_levels, step
from paths import ROOT
from torch import nn
from torchvision.ops import deform_conv2d

from cyclemlp_mm.apis.get_flops import get_flops
from cyclemlp_mm.apis.visualize import visualize
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.export import plain_form
from cyclemlp_mm.models import CycleMLP, to_deploy
from cyclemlp_mm.models.cyclemlp import BRANCHES, CycleMixer

SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(BRANCHES, n)]
ABLATED = [dict(kernel_size=5), dict(kernel_size=1, branches=('h', 'c')), dict(branches=('w',))]
CHANNELS = 12


def deformed(x, layer, axis, kernel_size):
    """A CycleFC along x (axis 1) or y (axis 0) of a map (B, H, W, C), as the published code has it:
    its loop over the channels, and torchvision's operator."""
    batch, height, width, channels = x.shape
    offset = torch.zeros(1, 2 * channels, 1, 1, dtype=x.dtype)
    for i in range(channels):
        step = (i + kernel_size // 2) % kernel_size - kernel_size // 2
        offset[0, 2 * i + axis] = step
    offset = offset.expand(batch, -1, height, width)
    weight = layer.weight[:, :, None, None]
    return deform_conv2d(x.permute(0, 3, 1, 2), offset, weight, layer.bias).permute(0, 2, 3, 1)


def reference(mixer, x, kernel_h, kernel_w, branches):
    """What a CycleMixer computes, from its parameters."""
    maps = {
        'h': lambda: deformed(x, mixer.sfc_h, 1, kernel_h),
        'w': lambda: deformed(x, mixer.sfc_w, 0, kernel_w),
        'c': lambda: F.linear(x, mixer.mlp_c.weight, mixer.mlp_c.bias),
    }
    maps = torch.stack([maps[branch]() for branch in branches])
    if mixer.reweight is not None:
        mean = maps.sum(0).mean(dim=(1, 2))
        fc1, fc2 = mixer.reweight.fc1, mixer.reweight.fc2
        hidden = F.gelu(F.linear(mean, fc1.weight, fc1.bias))
        logits = F.linear(hidden, fc2.weight, fc2.bias)
        a = logits.view(len(mean), mean.shape[1], len(branches)).softmax(dim=2)
        maps = maps * a.permute(2, 0, 1)[:, :, None, None, :]
    return F.linear(maps.sum(0), mixer.proj.weight, mixer.proj.bias)


def randomised(mixer):
    for parameter in mixer.double().parameters():
        nn.init.normal_(parameter, 0.0, 0.4)
    return mixer


def random_mixer(*arguments):
    return randomised(CycleMixer(CHANNELS, *arguments))


def assert_equals_reference(mixer, kernel_h, kernel_w, branches):
    """Output and every gradient, float64, within 1e-10 of the largest number."""
    x = torch.randn(2, 6, 5, CHANNELS, dtype=torch.float64, requires_grad=True)
    tensors = [x, *mixer.parameters()]
    results = []
    for y in (mixer(x), reference(mixer, x, kernel_h, kernel_w, branches)):
        cost = (y * torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)).sum()
        results.append([y, *torch.autograd.grad(cost, tensors)])
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        scale = max(float(expected.detach().abs().max()), 1.0)
        assert float((got - expected).abs().max()) <= 1e-10 * scale


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('reweight', [True, False])
@pytest.mark.parametrize('branches', SUBSETS, ids=''.join)
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7, 13])
def test_equals_deform_conv2d(kernel_size, branches, reweight):
    mixer = random_mixer(reweight, 'auto', kernel_size, branches)
    assert_equals_reference(mixer, kernel_size, kernel_size, branches)
    with torch.no_grad():
        x = torch.randn(1, 3, 8, CHANNELS, dtype=torch.float64)
        expected = x + reference(mixer, x, kernel_size, kernel_size, branches)
        for deployed in (mixer, to_deploy(mixer)):
            torch.testing.assert_close(deployed(x, x), expected, rtol=1e-10, atol=1e-10)


def test_the_reference_notices_another_kernel_and_branch():
    mixer = random_mixer(True, 'auto', 5, BRANCHES)
    assert_equals_reference(mixer, 5, 5, BRANCHES)
    for kernel_h, kernel_w, branches in ((7, 5, 'hwc'), (5, 3, 'hwc'), (5, 5, 'whc')):
        with pytest.raises(AssertionError):
            assert_equals_reference(mixer, kernel_h, kernel_w, branches)


def ablated(**arch):
    torch.manual_seed(0)
    return CycleMLP(dict(CYCLE, **arch))


@pytest.mark.parametrize('arch', ABLATED, ids=str)
def test_a_backbone_trains_is_checkpointed_deployed_and_put_in_plain_form(arch):
    model, image = ablated(**arch).double(), torch.randn(2, 3, 67, 64, dtype=torch.float64)
    levels, grads = step(model.train(), image)
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    again = ablated(**arch).double().train()
    again.with_cp = True
    assert_same_levels(step(again, image)[0], levels)
    with torch.no_grad():
        expected = model.eval()(image)
        assert_same_levels(plain_form(model)(image), expected)
        assert_same_levels(to_deploy(model)(image), expected)


def test_lists_of_a_config_and_another_order():
    mixer = ablated(branches=['c', 'h']).stages[0][0].mixer
    assert mixer.sfc_w is None and mixer.reweight.fc2.out_features == 2 * 8
    ordered = ablated(branches=('h', 'c'))
    image = torch.randn(1, 3, 64, 64)
    assert_same_levels(ablated(branches=['c', 'h'])(image), ordered(image))


@pytest.mark.parametrize('value', [0, 2, '3', True, (1, 3)])
def test_wrong_kernels(value):
    with pytest.raises((TypeError, ValueError), match='arch kernel_size must be an odd int'):
        ablated(kernel_size=value)


@pytest.mark.parametrize('value', [(), 'h', ('h', 'x'), ('h', 'h'), None, ('h', 1)])
def test_wrong_branches(value):
    with pytest.raises(ValueError, match='arch branches must be a tuple of at least one of'):
        ablated(branches=value)


@pytest.mark.parametrize('backend', ['shift', 'folded', 'triton'])
@pytest.mark.parametrize('arch', ABLATED, ids=str)
def test_a_backend_that_cannot_compute_it(arch, backend):
    image = torch.randn(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match=f"mixer_backend='{backend}' needs .*'auto'"):
        CycleMLP(dict(CYCLE, **arch), mixer_backend=backend)(image)
    CycleMLP(dict(CYCLE, **arch), mixer_backend='reference')(image)


@pytest.mark.slow
@pytest.mark.parametrize('arch, suffix', zip(ABLATED, ['.onnx', '.onnx', '.pt2']), ids=str)
def test_exported_at_any_size(arch, suffix, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    from cyclemlp_mm.export import ExportedPart, export_model
    from cyclemlp_mm.export.check import largest_difference, runner

    model = nn.Module()
    model.backbone = ablated(**arch).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    export_model(model, tmp_path / f'model{suffix}', 'backbone')
    shapes = [(1, 64, 96), (2, 131, 97), (1, 36, 45)]
    got = runner(tmp_path / f'model{suffix}')
    assert largest_difference(ExportedPart(model, 'backbone'), got, shapes) <= 1e-5


def config_of_the_page(tmp_path):
    """The block of docs/classification.md, as a file."""
    text = (ROOT / 'docs' / 'classification.md').read_text()
    section = text.split('## Ablations')[1].split('\n## ')[0]
    [block] = re.findall(r'^```python\n(.*?)^```', section, re.MULTILINE | re.DOTALL)
    base = str(ROOT / 'configs' / 'cyclemlp_b1_in1k.py')
    assert "'configs/cyclemlp_b1_in1k.py'" in block
    config = tmp_path / 'ablation.py'
    config.write_text(block.replace('configs/cyclemlp_b1_in1k.py', base))
    return str(config)


def test_the_config_of_the_page(tmp_path, monkeypatch, capsys):
    """Counted by hand from B1, built, and drawn."""
    pytest.importorskip('mmpretrain')
    config = config_of_the_page(tmp_path)
    usual, found = get_flops(['cyclemlp_b1_in1k']), get_flops([config])
    blocks = zip((2, 2, 4, 2), (64, 128, 320, 512), (56, 28, 14, 7))
    saved = [0, 0]
    for depth, c, side in blocks:
        saved[0] += depth * (c * c + c * (c // 4) + c)
        saved[1] += depth * (side * side * c * c + c * (c // 4))
    assert usual['parameters'] - found['parameters'] == saved[0]
    assert usual['multiply_adds'] - found['multiply_adds'] == saved[1]
    monkeypatch.chdir(tmp_path)
    drawn = []
    figures = sys.modules['cyclemlp_mm.visualization.figures']
    monkeypatch.setattr(figures, 'draw_staircase', lambda taps, *_: drawn.append(taps))
    visualize(['staircase', '--config', config])
    visualize(['staircase', '--config', 'cyclemlp_b1_in1k'])
    option = 'model.backbone.arch.kernel_size=7'
    visualize(['staircase', '--config', config, '--cfg-options', option])
    visualize(['staircase', '1', '9'])
    assert drawn == [[5], [3], [7], [1, 9]]
    for arguments, said in (
        (['3', '--config', config], 'give either taps or --config'),
        (['--cfg-options', option], 'give --config, too'),
        (['--config', 'mpvit_tiny_in1k'], 'has no CycleFC'),
        (
            ['--config', config, '--cfg-options', 'model.backbone.arch.kernel_size=4'],
            'arch kernel_size must be an odd',
        ),
    ):
        with pytest.raises(UserError, match=said):
            visualize(['staircase', *arguments])
