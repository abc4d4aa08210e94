"""Layers that someone changed or listens to are called, at every size and in every family."""

import copy

import pytest
import torch
from changed_models import by_layers
from families import OURS, assert_same_levels, build, trained
from old_torch import OLD
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from cyclemlp_mm.models import to_deploy
from cyclemlp_mm.models.layers import Mlp
from cyclemlp_mm.ops import CycleFC

pytestmark = pytest.mark.usefixtures('form')
every_family = pytest.mark.parametrize('family', OURS)


def small(family):
    return trained(family).double()


def random_image():
    return torch.randn(1, 3, 64, 64, dtype=torch.float64)


def children(model, *kinds):
    """(parent, name, layer) of every layer whose class has one of these names."""
    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer).__name__ in kinds
    ]


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


@every_family
@torch.no_grad()
def test_every_hook_fires_and_changes_nothing(family):
    model, image = small(family), random_image()
    expected = model(image)
    seen = set()
    for name, module in layers(model).items():
        module.register_forward_hook(lambda *_, name=name: seen.add(name))
    assert_same_levels(model(image), expected)
    assert seen == set(layers(model))


def test_a_fast_form_cannot_call_layers():
    model = build('reweighted', mixer_backend='folded').eval()
    model.stages[0][0].mixer.proj.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"'folded' needs .* have no hooks: take"):
        model(torch.randn(1, 3, 64, 64))


def test_pruned_weights_train():
    from torch.nn.utils import prune

    model = build('reweighted').train()
    fc1 = model.stages[0][0].mlp.fc1
    prune.random_unstructured(fc1, 'weight', 0.5)
    for _ in range(2):
        sum(level.square().sum() for level in model(torch.randn(1, 3, 64, 64))).backward()
    assert torch.equal(fc1.weight_orig.grad != 0, fc1.weight_mask != 0)


@pytest.mark.few(2)
@every_family
@torch.no_grad()
def test_traced_by_torchscript(family):
    """At the traced size; counters of operations trace, too."""
    model = small(family)
    image, other = random_image(), random_image()
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


@pytest.mark.few(3)
@every_family
@torch.no_grad()
def test_what_is_put_around_a_layer_is_called(family):
    """Around whole MLPs and stochastic depth as well, past which the fast forms go."""
    model, image = small(family), random_image()
    expected = model(image)
    whole = ('Mlp', 'DropPath', 'CycleMixer', 'CycleFC', 'ConvDownsample', 'PatchMerging')
    inside = children(model, 'LayerNorm', 'ConvNorm', *whole)
    assert len(inside) > 20
    for parent, name, layer in inside:
        around = Around(layer)
        setattr(parent, name, around)
        assert_same_levels(model(image), expected)
        assert around.calls, f'{name} of {type(parent).__name__}'
        setattr(parent, name, layer)


class Plus(nn.Linear):
    """A Linear that does more, as LoRA does."""

    def forward(self, x):
        return super().forward(x) + 1


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
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation')
    settings = {name: getattr(conv, name) for name in (*names, 'groups', 'padding_mode')}
    return nn.Conv2d(**(settings | dict(bias=conv.bias is not None) | changes))


def with_scaled_weight(linear):
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Scaled), requires_grad=False)
    return linear


def dilated(conv):
    if conv.stride != (1, 1) or conv.kernel_size == (1, 1):
        return conv
    return conv_like(conv, dilation=2, padding=tuple(2 * p for p in conv.padding))


def changed_to_plus(linear):
    linear.__class__ = Plus
    return linear


def cycle_fc_like(fc, kernel_size=None, **changes):
    return CycleFC(fc.in_channels, fc.out_channels, kernel_size or fc.kernel_size, **changes)


def with_or_without_bias(linear):
    return nn.Linear(linear.in_features, linear.out_features, linear.bias is None)


def norm_like(norm, **changes):
    return nn.LayerNorm(norm.normalized_shape, **changes)


def narrower(block):
    """As pruned: the mixer's branches, and the hidden layer of the MLP."""
    width = block.mixer.mlp_c.in_features
    block.mixer.mlp_c = nn.Linear(width, 4, bias=False)
    block.mixer.sfc_h, block.mixer.sfc_w = CycleFC(width, 4, (1, 3)), CycleFC(width, 4, (3, 1))
    block.mixer.proj = nn.Linear(4, width)
    if block.mixer.reweight is not None:
        block.mixer.reweight = Mlp(4, 4, 12)
    block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, 10), nn.Linear(10, width)
    return block


#: Layers of a class, and what a user puts into their place.
CHANGES = {
    'other taps': ('CycleFC', lambda m: cycle_fc_like(m, (1, 5))),
    'other axis': ('CycleFC', lambda m: cycle_fc_like(m, m.kernel_size[::-1])),
    'CycleFC without bias': ('CycleFC', lambda m: cycle_fc_like(m, bias=False)),
    'Linear with or without bias': ('Linear', with_or_without_bias),
    'weights of a subclass': ('Linear', with_scaled_weight),
    'a Linear that does more': ('Linear', changed_to_plus),
    'LayerNorm without bias': ('LayerNorm', lambda m: norm_like(m, bias=False)),
    'LayerNorm without weight': ('LayerNorm', lambda m: norm_like(m, elementwise_affine=False)),
    'LayerNorm with another eps': ('LayerNorm', lambda m: norm_like(m, eps=0.1)),
    'another GELU': ('GELU', lambda m: nn.GELU(approximate='tanh')),
    'borders of copies': ('Conv2d', lambda m: conv_like(m, padding_mode='replicate')),
    'dilated': ('Conv2d', dilated),
    'convolution with bias': ('Conv2d', lambda m: conv_like(m, bias=True)),
    'convolution without bias': ('Conv2d', lambda m: conv_like(m, bias=False)),
    'narrower ones': ('CycleBlock', narrower),
    'no Mlp at all': ('Mlp', lambda m: nn.Linear(m.fc1.in_features, m.fc2.out_features)),
    'no DropPath at all': ('DropPath', lambda m: nn.Identity()),
    'a norm that does more': ('BatchNorm2d', lambda m: NormAndMore(m.num_features)),
}


@pytest.mark.few(20)
@pytest.mark.parametrize('change', CHANGES)
@every_family
def test_layers_of_the_same_class_with_other_arguments(family, change):
    kind, replaced = CHANGES[change]
    if change == 'LayerNorm without bias' and OLD:
        pytest.skip('this PyTorch has no such LayerNorm')
    model = small(family).float()
    found = children(model, kind)
    for parent, name, layer in found:
        setattr(parent, name, replaced(layer))
    if not found:
        pytest.skip(f'{family} has no {kind}')
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if type(parameter) is nn.Parameter:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    image, plain = random_image(), by_layers(model)
    with torch.no_grad():
        assert_same_levels(model(image), plain(image))
    levels, grads = [], []
    for one in (model, plain):
        levels.append(one(image))
        sum(torch.sin(level).sum() for level in levels[-1]).backward()
        grads.append([p.grad for p in one.parameters()])
    assert_same_levels(*levels)
    for got, wanted in zip(*grads, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        assert_same_levels(to_deploy(copy.deepcopy(model))(image), plain(image))


def doubled(module, inputs, output):
    return output * 2 if type(module) in (nn.Linear, nn.LayerNorm, CycleFC) else None


@pytest.mark.parametrize('family', [*OURS, 'folded'])
@torch.no_grad()
def test_hooks_on_all_modules(family):
    model, image = small(family.replace('folded', 'reweighted')), random_image()
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
        levels = model(image)
    finally:
        for handle in handles:
            handle.remove()
    assert set(layers(model).values()) < seen
    assert_same_levels(levels, own(image))


@every_family
@torch.no_grad()
def test_a_class_whose_forward_was_replaced(family, monkeypatch):
    model, image = small(family), random_image()
    plain = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, 'forward', lambda self, x: plain(self, x) * 2)
    assert_same_levels(model(image), by_layers(model)(image))
    changed = model(image)[0]
    monkeypatch.undo()
    assert (changed - model(image)[0]).abs().max() > 1e-3


@pytest.mark.few(6)
@pytest.mark.parametrize('family', [*OURS, 'deployed'])
@pytest.mark.parametrize('grad', [False, True])
def test_counters_see_every_operation(family, grad):
    model = small(family.replace('deployed', 'summed')).float()
    if family == 'deployed':
        to_deploy(model)
    counts = []
    for device in ('cpu', 'meta'):
        image = torch.randn(1, 3, 64, 64, device=device)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            model.to(device)(image)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 1e5
