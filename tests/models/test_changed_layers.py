"""Layers that someone changed or listens to are called, at every size and in every family."""

import copy

import pytest
import torch
from changed_models import by_layers
from old_torch import OLD
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from cyclemlp_mm.models import CycleMLP, MPViT, to_deploy
from cyclemlp_mm.models.layers import Mlp
from cyclemlp_mm.ops import CycleFC

WIDTHS = dict(depths=(1, 1, 1, 1), widths=(16, 24, 32, 40))
ARCHS = {
    'reweighted': lambda **kw: CycleMLP(
        dict(**WIDTHS, mlp_ratios=(4, 4, 4, 4), reweight=True, downsample='conv'), **kw
    ),
    'summed': lambda **kw: CycleMLP(
        dict(**WIDTHS, mlp_ratios=(4, 4, 4, 4), reweight=False, downsample='patch_merging'), **kw
    ),
    'mpvit': lambda **kw: MPViT(dict(**WIDTHS, paths=(2, 3, 3, 3), mlp_ratio=4), **kw),
}
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
        name: module
        for name, module in found.items()
        if not list(module.children())
        and list(module.parameters())
        and '.relative' not in name
        and '.position' not in name
    }


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
            (parent, name, layer)
            for parent in model.modules()
            for name, layer in parent.named_children()
            if type(layer).__name__
            in (
                'Mlp',
                'DropPath',
                'CycleMixer',
                'CycleFC',
                'LayerNorm',
                'ConvDownsample',
                'PatchMerging',
                'ConvNorm',
            )
        ]
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


class NormAndMore(nn.BatchNorm2d):
    """A BatchNorm that does more, as in-place activated ones do."""

    def forward(self, x):
        return super().forward(x).relu()


class Scaled(torch.Tensor):
    """Weights that stand for others, as torchao's quantised ones do."""

    def __deepcopy__(self, memo):
        return self.clone()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is not nn.functional.linear:
            return super().__torch_function__(func, types, args, kwargs or {})
        x, weight, bias = args
        return func(x, weight.as_subclass(torch.Tensor) * 3, bias)


def conv_like(conv, **changes):
    settings = dict(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    return nn.Conv2d(**(settings | changes))


def dilated(conv):
    if conv.stride != (1, 1) or conv.kernel_size == (1, 1):
        return conv
    return conv_like(conv, dilation=2, padding=tuple(2 * p for p in conv.padding))


def with_scaled_weight(linear):
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Scaled), requires_grad=False)
    return linear


#: Layers of a class, and what a user puts into their place.
CHANGES = {
    'other taps': (CycleFC, lambda m: CycleFC(m.in_channels, m.out_channels, (1, 5))),
    'other axis': (CycleFC, lambda m: CycleFC(m.in_channels, m.out_channels, m.kernel_size[::-1])),
    'CycleFC without bias': (
        CycleFC,
        lambda m: CycleFC(m.in_channels, m.out_channels, m.kernel_size, bias=False),
    ),
    'Linear with bias': (nn.Linear, lambda m: nn.Linear(m.in_features, m.out_features)),
    'Linear without bias': (
        nn.Linear,
        lambda m: nn.Linear(m.in_features, m.out_features, bias=False),
    ),
    'weights of a subclass': (nn.Linear, with_scaled_weight),
    'LayerNorm without bias': (
        nn.LayerNorm,
        lambda m: nn.LayerNorm(m.normalized_shape, bias=False),
    ),
    'LayerNorm without weight': (
        nn.LayerNorm,
        lambda m: nn.LayerNorm(m.normalized_shape, elementwise_affine=False),
    ),
    'LayerNorm with another eps': (nn.LayerNorm, lambda m: nn.LayerNorm(m.normalized_shape, 0.1)),
    'another GELU': (nn.GELU, lambda m: nn.GELU(approximate='tanh')),
    'borders of copies': (nn.Conv2d, lambda m: conv_like(m, padding_mode='replicate')),
    'dilated': (nn.Conv2d, dilated),
    'convolution with bias': (nn.Conv2d, lambda m: conv_like(m, bias=True)),
    'convolution without bias': (nn.Conv2d, lambda m: conv_like(m, bias=False)),
    'a norm that does more': (nn.BatchNorm2d, lambda m: NormAndMore(m.num_features)),
}


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('family', ARCHS)
def test_layers_of_the_same_class_with_other_arguments(family, change):
    kind, replaced = CHANGES[change]
    if change == 'LayerNorm without bias' and OLD:
        pytest.skip('this PyTorch has no such LayerNorm')
    model = build(family)
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) is kind
    ]
    for parent, name, layer in found:
        setattr(parent, name, replaced(layer))
    if not found:
        pytest.skip(f'{family} has no {kind.__name__}')
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if type(parameter) is nn.Parameter:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_same_levels(model(image), by_layers(model)(image))
    levels, grads = [], []
    for one in (model, by_layers(model)):
        levels.append(one(image))
        sum(torch.sin(level).sum() for level in levels[-1]).backward()
        grads.append([p.grad for p in one.parameters()])
    assert_same_levels(*levels)
    for got, wanted in zip(*grads, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)
    deployed = to_deploy(copy.deepcopy(model))
    with torch.no_grad():
        assert_same_levels(deployed(image), by_layers(model)(image))


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('family', ['reweighted', 'summed'])
def test_narrower_layers(family):
    """Pruned ones: the mixer's branches, and the hidden layer of an MLP."""
    model = build(family)
    for block in [m for m in model.modules() if hasattr(m, 'mixer')]:
        width = block.mixer.mlp_c.in_features
        block.mixer.mlp_c = nn.Linear(width, 8, bias=False)
        block.mixer.sfc_h = CycleFC(width, 8, (1, 3))
        block.mixer.sfc_w = CycleFC(width, 8, (3, 1))
        block.mixer.proj = nn.Linear(8, width)
        if block.mixer.reweight is not None:
            block.mixer.reweight = Mlp(8, 4, 24)
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, 10), nn.Linear(10, width)
    model.double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_same_levels(model(image), by_layers(model)(image))


def doubled(module, inputs, output):
    return output * 2 if type(module) in (nn.Linear, nn.LayerNorm, CycleFC) else None


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('family', [*ARCHS, 'folded'])
def test_hooks_on_all_modules(family):
    model = build(family.replace('folded', 'reweighted')).double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    own = by_layers(model)
    for module in own.modules():
        module.register_forward_hook(doubled)
    for module in model.modules() if family == 'folded' else ():
        if hasattr(module, 'backend'):
            module.backend = 'folded'
    seen = set()
    handles = [
        register_module_forward_hook(doubled),
        register_module_forward_pre_hook(lambda module, inputs: seen.add(module)),
    ]
    try:
        with torch.no_grad():
            levels = model(image)
    finally:
        for handle in handles:
            handle.remove()
    assert set(layers(model).values()) < seen
    with torch.no_grad():
        assert_same_levels(levels, own(image))


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('family', ARCHS)
def test_a_class_whose_forward_was_replaced(family, monkeypatch):
    model = build(family).double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    plain = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, 'forward', lambda self, x: plain(self, x) * 2)
    with torch.no_grad():
        assert_same_levels(model(image), by_layers(model)(image))
        assert (model(image)[0] - build(family).double()(image)[0]).abs().max() == 0
        changed = model(image)[0]
        monkeypatch.undo()
        assert (changed - model(image)[0]).abs().max() > 1e-3


@pytest.mark.parametrize('form', ['small map', 'large map'], indirect=True)
@pytest.mark.parametrize('family', [*ARCHS, 'deployed'])
@pytest.mark.parametrize('grad', [False, True])
def test_counters_see_every_operation(family, form, grad):
    model = build(family.replace('deployed', 'summed'))
    if family == 'deployed':
        to_deploy(model)
    counts = []
    for device in ('cpu', 'meta'):
        image = torch.randn(1, 3, 64, 64, device=device)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            model.to(device)(image)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 1e6
