"""Layers that someone changed or listens to are called, at every size and in every family."""

import copy

import pytest
import torch
from torch import nn

from cyclemlp_mm.models import CycleMLP, MPViT, to_deploy

WIDTHS = dict(depths=(1, 1, 1, 1), widths=(16, 24, 32, 40))
ARCHS = {
    'reweighted': lambda **kw: CycleMLP(
        dict(**WIDTHS, mlp_ratios=(4, 4, 4, 4), reweight=True, downsample='conv'), **kw),
    'summed': lambda **kw: CycleMLP(
        dict(**WIDTHS, mlp_ratios=(4, 4, 4, 4), reweight=False, downsample='patch_merging'), **kw),
    'mpvit': lambda **kw: MPViT(dict(**WIDTHS, paths=(2, 3, 3, 3), mlp_ratio=4), **kw),
}  # fmt: skip
SIZES = [(32, 64), (256, 320)]  # plain modules, and chunks or one product per image


def build(family, seed=0):
    torch.manual_seed(seed)
    model = ARCHS[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def assert_same_levels(got, wanted, tolerance=1e-9):
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def layers(model):
    """Every layer with a ``forward`` of its own that is called once per forward pass, by name."""
    found = dict(model.named_modules())
    return {
        name: module for name, module in found.items()
        if not list(module.children()) and list(module.parameters()) and '.relative' not in name
        and '.position' not in name
    }  # fmt: skip


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('family', ARCHS)
def test_every_hook_fires_and_changes_nothing(family, size):
    model = build(family).double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(image)
        seen = set()
        for name, module in layers(model).items():
            module.register_forward_hook(lambda *_, name=name: seen.add(name))
        hooked = model(image)
    assert seen == set(layers(model))
    assert_same_levels(hooked, expected)


class Plus(nn.Linear):
    """A Linear that does more, as LoRA does."""

    def forward(self, x):
        return super().forward(x) + 100


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('family', ARCHS)
def test_a_layer_in_anothers_place_is_called(family, size):
    model = build(family).double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for name, module in layers(model).items():
            # The mixer's mlp_c has no bias to move.
            if type(module) is not nn.Linear or not name.startswith('stages.0') or 'mlp_c' in name:
                continue
            parent = model.get_submodule(name.rpartition('.')[0])
            changed = copy.deepcopy(module)
            changed.__class__ = Plus
            moved = copy.deepcopy(module)
            moved.bias = nn.Parameter(
                torch.full((module.out_features,), 100.0).double()
                + (0 if module.bias is None else module.bias)
            )
            outputs = []
            for layer in (changed, moved):  # the same function, by another forward or bias
                setattr(parent, name.rpartition('.')[2], layer)
                outputs.append(model(image))
            setattr(parent, name.rpartition('.')[2], module)
            assert_same_levels(*outputs)


def test_a_fast_form_cannot_call_layers():
    model = CycleMLP('b1', mixer_backend='folded').eval()
    model.stages[0][0].mixer.proj.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="'folded' cannot run: a layer of the mixer has hooks"):
        model(torch.randn(1, 3, 64, 64))


def test_pruned_weights_train():
    from torch.nn.utils import prune

    model = build('reweighted').train()
    fc1 = model.stages[0][0].mlp.fc1
    prune.random_unstructured(fc1, 'weight', 0.5)
    for _ in range(2):
        sum(level.square().sum() for level in model(torch.randn(1, 3, 256, 320))).backward()
    assert torch.equal(fc1.weight_orig.grad != 0, fc1.weight_mask != 0)


@pytest.mark.parametrize('family', ['reweighted', 'summed'])
def test_loading_into_a_deployed_model(family):
    first, second = build(family, 0).double(), build(family, 1).double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    to_deploy(first).load_state_dict(second.state_dict())
    with torch.no_grad():
        assert_same_levels(first(image), second(image))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('family', ['reweighted', 'summed'])
def test_no_image_at_all(family, size, training):
    levels = build(family).train(training)(torch.randn(0, 3, *size))
    assert [tuple(level.shape[:2]) for level in levels] == [(0, c) for c in WIDTHS['widths']]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('family', ARCHS)
def test_traced_by_torchscript(family, size):
    """At the traced size; counters of operations trace, too."""
    model = build(family).double()
    image, other = torch.randn(2, 1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_same_levels(torch.jit.trace(model, image)(other), model(other))


class Around(nn.Module):
    """Around a layer, whose attributes it answers with, as FSDP and activation checkpointing do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.calls = 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, *inputs, **named):
        self.calls += 1
        return self.inner(*inputs, **named)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('family', ARCHS)
def test_what_is_put_around_a_layer_is_called(family, size):
    """Around whole MLPs and stochastic depth as well, past which the fast forms go."""
    model = build(family).double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(image)
        inside = [
            (parent, name, layer) for parent in model.modules()
            for name, layer in parent.named_children()
            if type(layer).__name__ in ('Mlp', 'DropPath', 'CycleMixer', 'CycleFC', 'LayerNorm',
                                        'ConvDownsample', 'PatchMerging', 'ConvNorm')
        ]  # fmt: skip
        assert len(inside) > 20
        for parent, name, layer in inside:
            around = Around(layer)
            setattr(parent, name, around)
            assert_same_levels(model(image), expected)
            assert around.calls, f'{name} of {type(parent).__name__}'
            setattr(parent, name, layer)


@pytest.mark.parametrize('family', ARCHS)
def test_other_modules_in_the_place_of_an_mlp(family):
    """Ones that are no Mlp and no DropPath at all."""
    model = build(family)
    blocks = [m for m in model.modules() if hasattr(m, 'mlp') and hasattr(m, 'drop_path')]
    blocks[0].mlp = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    blocks[0].drop_path = nn.Identity()
    with torch.no_grad():
        assert all(level.isfinite().all() for level in model(torch.randn(1, 3, 64, 64)))
