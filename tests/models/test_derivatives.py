"""Derivatives by every route of PyTorch: the right value, on small maps and on large ones."""

import pytest
import torch
from changed_models import by_layers
from families import FAMILIES, trained
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, hessian, jvp, vmap

pytestmark = pytest.mark.usefixtures('form')


@pytest.fixture(params=[*FAMILIES, 'folded'])
def model(request):
    family = request.param.replace('folded', 'reweighted')
    backend = dict(mixer_backend='folded') if request.param == 'folded' else {}
    return trained(family, **backend).double()


def images(batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, batch, 3, 32, 32, dtype=torch.float64, generator=generator)


def cost(levels):
    """A number that weighs all outputs differently."""
    return sum(torch.sin(level * (i + 1)).sum() for i, level in enumerate(levels))


def assert_close(got, wanted, tolerance=1e-9):
    assert got.shape == wanted.shape
    assert float(((got - wanted).norm() / wanted.norm()).detach()) < tolerance


def test_forward_mode_agrees_with_backward(model):
    image, direction = images()
    image.requires_grad_(True)
    wanted = (torch.autograd.grad(cost(model(image)), image)[0] * direction).sum()
    model.requires_grad_(False)
    image = image.detach()
    assert_close(jvp(lambda x: cost(model(x)), (image,), (direction,))[1], wanted)
    with forward_ad.dual_level():
        value = cost(model(forward_ad.make_dual(image, direction)))
        assert_close(forward_ad.unpack_dual(value).tangent, wanted)


def test_functional_gradients_agree_with_backward(model):
    image, _ = images()
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(cost(model(image)), parameters.values())
    got = grad(lambda p: cost(functional_call(model, p, (image,))))(
        {name: p.detach() for name, p in parameters.items()}
    )
    for name, expected in zip(parameters, wanted):
        assert_close(got[name], expected)


@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_vmap_over_images_and_over_models(model):
    image, _ = images(batch=2)
    plain = {name: p.detach() for name, p in model.named_parameters()}
    other = {name: p + 0.01 for name, p in plain.items()}
    with torch.no_grad():
        levels = vmap(lambda one: model(one[None]))(image)
        for got, wanted in zip(levels, model(image)):
            assert_close(got[:, 0], wanted)
        both = {name: torch.stack([plain[name], other[name]]) for name in plain}
        levels = vmap(lambda p: functional_call(model, p, (image,)))(both)
        for i, parameters in enumerate((plain, other)):
            for got, wanted in zip(levels, functional_call(model, parameters, (image,))):
                assert_close(got[i], wanted)


@pytest.mark.few(3)
def test_products_with_the_hessian(model):
    image, direction = images()
    plain = by_layers(model)

    def of(model):
        return lambda x: cost(model(x))

    wanted = functional.hvp(of(plain), image, direction)[1]
    assert_close(functional.hvp(of(model), image, direction)[1], wanted)
    assert_close(functional.vhp(of(model), image, direction)[1], wanted)
    assert_close(jvp(grad(of(model)), (image,), (direction,))[1], wanted)
    image.requires_grad_(True)
    [first] = torch.autograd.grad(cost(model(image)), image, create_graph=True)
    [once] = torch.autograd.grad(cost(model(image)), image)
    assert_close(first.detach(), once, 1e-12)
    assert_close(torch.autograd.grad(first, image, direction)[0], wanted)


def test_a_penalty_on_the_gradient_trains_every_parameter(model):
    image, _ = images(batch=2)
    image.requires_grad_(True)
    grads = []
    for one in (model.train(), by_layers(model).train()):
        [first] = torch.autograd.grad(cost(one(image)), image, create_graph=True)
        first.square().sum().backward()
        grads.append([p.grad for p in one.parameters()])
    largest = max(wanted.norm() for wanted in grads[1] if wanted is not None)
    for got, wanted in zip(*grads, strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or (got - wanted).norm() < 1e-11 * largest


@pytest.mark.few(3)
def test_rows_of_the_jacobian_and_the_hessian(model):
    """Of a few pixels: the whole matrices have millions of entries."""
    image, _ = images()
    few = image[0, 0, 5, 7:10].clone()

    def of(model):
        def cost_of(few):
            changed = image.clone()
            changed[0, 0, 5, 7:10] = few
            return cost(model(changed))

        return cost_of

    plain, ours = of(by_layers(model)), of(model)
    wanted = functional.jacobian(plain, few), functional.hessian(plain, few)
    for vectorize in (False, True):
        assert_close(functional.jacobian(ours, few, vectorize=vectorize), wanted[0])
        assert_close(functional.hessian(ours, few, vectorize=vectorize), wanted[1])
    assert_close(hessian(ours)(few), wanted[1])
    forward = functional.jacobian(ours, few, vectorize=True, strategy='forward-mode')
    assert_close(forward, wanted[0])


@pytest.mark.few(4)
def test_activation_checkpointing(model):
    image, direction = images(batch=2)

    def derivatives():
        def of(x):
            return cost(model(x))

        hvp = functional.hvp(of, image, direction)[1]
        return [grad(of)(image), jvp(of, (image,), (direction,))[1], hvp]

    model.train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()  # transforms do not support updates of statistics
    wanted = derivatives()
    model.with_cp = True
    for got, expected in zip(derivatives(), wanted, strict=True):
        assert_close(got, expected)
