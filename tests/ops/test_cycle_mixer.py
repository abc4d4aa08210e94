"""Every form of the mixer against the published one."""

import sys
from functools import partial

import pytest
import torch
from mixer_cases import SHAPES, cast, distance, named, random_weights, run, worst
from old_torch import CPU_HALVES, new_torch_only
from torch import nn

from benchmarking.measure import saved_for_backward
from benchmarking.published_form import published_mixer
from cyclemlp_mm.ops import cycle_mixer
from cyclemlp_mm.ops.cycle_mixer import choose_backend

FORMS = ['reference', 'shift', 'folded', 'auto']
CHANNELS = [1, 2, 8, 12, 33]


@pytest.fixture(params=['whole', 'row by row'])
def chunks(request, monkeypatch):
    if request.param == 'row by row':
        monkeypatch.setattr('cyclemlp_mm.ops.shifted_product.CPU_CHUNK_BYTES', 1)


@pytest.mark.parametrize('reweight', [True, False])
@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.usefixtures('chunks')
def test_equals_the_published_form_in_float64(form, channels, reweight):
    for shape in SHAPES:
        weights = random_weights(channels, reweight, torch.float64)
        x = torch.randn(*shape, channels, dtype=torch.float64)
        y, grads = run(partial(cycle_mixer, backend=form), x, weights)
        expected, expected_grads = run(published_mixer, x, weights)
        assert worst(y, expected) < 1e-12, shape
        for name, grad in grads.items():
            assert worst(grad, expected_grads[name]) < 1e-10, (shape, name)


@pytest.mark.parametrize('reweight', [True, False])
@pytest.mark.parametrize('channels', [12, 64, 97])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('onednn', [True, False])
def test_equals_the_published_form_in_float32(form, channels, reweight, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr('cyclemlp_mm.ops.cpu_linear.has_onednn', lambda x: False)
    for shape in [*SHAPES, (2, 40, 33)]:
        weights = random_weights(channels, reweight, torch.float32)
        x = torch.randn(*shape, channels)
        with torch.no_grad():
            expected = published_mixer(x, weights)
            exact = published_mixer(x.double(), cast(weights, torch.float64))
            y = cycle_mixer(x, weights, form)
        trained = cycle_mixer(x, weights, form).detach()
        for result in (y, trained):
            assert worst(result, expected) < 2e-6, shape
            if result.numel() > 1000:  # enough for an error to be no matter of luck
                assert distance(result, exact) <= 2 * distance(expected, exact), shape


def assert_as_close_as_the_reference(mixer, x, weights, form, dtype):
    """By the distance from the published form in float64, of ``mixer(x, weights, form)``."""
    exact, exact_grads = run(published_mixer, x.double(), cast(weights, torch.float64))
    plain, plain_grads = run(partial(mixer, backend='reference'), x, weights)
    y, grads = run(partial(mixer, backend=form), x, weights)
    with torch.no_grad():
        inferred = mixer(x, weights, form)
    for result in (y, inferred):
        assert result.dtype == dtype
        assert distance(result, exact) <= 2 * distance(plain, exact)
    for name, grad in grads.items():
        assert grad.dtype == x.dtype
        limit = 2 * distance(plain_grads[name], exact_grads[name])
        assert distance(grad, exact_grads[name]) <= limit, name


@pytest.mark.parametrize('reweight', [True, False])
@pytest.mark.parametrize('shape', [(2, 7, 5, 64), (1, 40, 33, 64), (3, 20, 21, 97)])
@pytest.mark.parametrize('form', FORMS)
def test_bfloat16_is_as_close_as_plain_shift_and_linear(form, shape, reweight):
    weights, x = random_weights(shape[-1], reweight, torch.bfloat16), torch.randn(*shape)
    assert_as_close_as_the_reference(cycle_mixer, x.bfloat16(), weights, form, torch.bfloat16)


@pytest.mark.parametrize('dtype', CPU_HALVES)
@pytest.mark.parametrize('form', FORMS)
def test_autocast(form, dtype):
    def under_autocast(x, weights, backend):
        with torch.autocast('cpu', dtype):
            return cycle_mixer(x, weights, backend)  # in autocast's dtype, as a Linear's output

    weights, x = random_weights(48, True, torch.float32), torch.randn(2, 20, 17, 48)
    assert_as_close_as_the_reference(under_autocast, x, weights, form, dtype)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('grad', [True, False])
def test_any_memory_layout_and_a_residual(form, grad):
    weights = random_weights(12, True, torch.float64)
    x = torch.randn(2, 12, 9, 7, dtype=torch.float64).permute(0, 2, 3, 1)  # strided like NCHW
    residual = torch.randn(2, 9, 7, 24, dtype=torch.float64)[..., ::2]
    before = x.clone(), residual.clone()
    with torch.set_grad_enabled(grad):
        y = cycle_mixer(x, weights, form, residual=residual)
        expected = residual + published_mixer(x, weights)
    assert worst(y.detach(), expected.detach()) < 1e-12
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


@pytest.mark.parametrize('frozen', ['weights', 'map', 'some weights'])
def test_gradients_only_where_asked(frozen):
    weights = random_weights(12, True, torch.float64)
    x = torch.randn(2, 9, 7, 12, dtype=torch.float64, requires_grad=frozen != 'map')
    for name, parameter in named(weights).items():
        if frozen == 'weights' or (frozen == 'some weights' and 'weight' in name):
            parameter.requires_grad_(False)
    wanted = [t for t in [x, *named(weights).values()] if t.requires_grad]
    expected, *results = (
        torch.autograd.grad(cycle_mixer(x, weights, form).square().sum(), wanted) for form in FORMS
    )
    for grads in results:
        assert all(worst(a, b) < 1e-10 for a, b in zip(grads, expected, strict=True))


def test_folded_keeps_the_map_and_small_matrices_only():
    weights = random_weights(16, True, torch.float32)
    x = torch.randn(2, 64, 64, 16, requires_grad=True)
    parameters = nn.ParameterList(named(weights).values())  # of the same memory
    kept = saved_for_backward(lambda: cycle_mixer(x, weights, 'folded'), parameters)
    assert kept < 1.1 * x.nbytes
    assert kept < 0.25 * saved_for_backward(lambda: published_mixer(x, weights), parameters)


def test_backends_that_cannot_run(monkeypatch):
    x, weights = torch.randn(1, 4, 4, 8), random_weights(8, True, torch.float32)
    with pytest.raises(ValueError, match="'auto' or one of"):
        cycle_mixer(x, weights, 'fast')
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"backend='triton' needs .* on cpu"):
            cycle_mixer(x, weights, 'triton')
    # Not by a path: the package's function of the same name hides the module.
    monkeypatch.setattr(sys.modules[cycle_mixer.__module__], 'find_spec', lambda name: None)
    cycle_mixer(x, weights)
    with pytest.raises(RuntimeError, match='needs Triton'):
        cycle_mixer(x, weights, 'triton')


def test_auto_folds_by_size():
    def choice(*shape, dtype=torch.float32, reweight=True, device='cpu'):
        return choose_backend(shape, torch.device(device), dtype, reweight)

    assert choice(1, 200, 304, 64) == choice(8, 50, 76, 320) == 'folded'
    assert choice(1, 25, 38, 512) == choice(1, 32, 32, 320) == 'shift'
    assert choice(1, 50, 76, 320, dtype=torch.bfloat16) == 'folded'
    assert choice(1, 40, 40, 320, dtype=torch.bfloat16) == 'reference'
    assert choice(4, 7, 7, 512) == choice(64, 14, 14, 64) == 'reference'
    # Images that share their matrix share its price.
    assert choice(16, 14, 14, 512, reweight=False) == 'folded'
    assert choice(32, 14, 14, 512, reweight=False, dtype=torch.bfloat16) == 'folded'
    # Counting operations on the meta device gives the published figures.
    assert choice(1, 200, 304, 64, device='meta') == 'reference'


@pytest.mark.few(2)
@new_torch_only
@pytest.mark.parametrize('form', ['reference', 'shift', 'folded'])
@pytest.mark.parametrize('grad', [True, False])
def test_traced_by_torch_compile(form, grad):
    torch.compiler.reset()
    weights = random_weights(12, True, torch.float64)
    x = torch.randn(2, 9, 7, 12, dtype=torch.float64)
    compiled = torch.compile(
        lambda x, w: cycle_mixer(x, w, form), backend='aot_eager', fullgraph=True
    )
    with torch.set_grad_enabled(grad):
        assert worst(compiled(x, weights).detach(), published_mixer(x, weights).detach()) < 1e-12
    if grad:
        _, grads = run(compiled, x, weights)
        _, expected = run(published_mixer, x, weights)
        assert all(worst(grads[name], expected[name]) < 1e-10 for name in expected)
