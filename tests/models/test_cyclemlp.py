"""CycleMLP against its published sizes and its published form."""

import pytest
import torch
from families import CFGS, step
from mixer_cases import distance, worst
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.published_form import published_form
from cyclemlp_mm.models import CycleMLP

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


@pytest.mark.few(4)
@pytest.mark.parametrize('arch', CycleMLP.arch_zoo)
def test_sizes_are_the_published_ones(arch):
    with torch.device('meta'):
        model = CycleMLP(arch, out_indices=3)
        image = torch.empty(1, 3, 224, 224)
    parameters, operations = PUBLISHED_SIZE[arch]
    count = sum(p.numel() for p in model.parameters()) + 1000 * model.out_channels[-1] + 1000
    digits = 2 if arch in ('b1', 'b2') else 0  # as many as were published
    assert round(count / 1e6, digits) == pytest.approx(parameters / 1e6)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    multiply_adds = counter.get_total_flops() / 2  # the counter counts both
    assert multiply_adds == pytest.approx(operations, rel=0.015)


@pytest.mark.parametrize('family', ['reweighted', 'summed'])
@pytest.mark.parametrize('backend', ['auto', 'reference', 'shift', 'folded'])
@pytest.mark.parametrize('with_cp', [False, True])
def test_equal_outputs_and_gradients_in_float64(family, backend, with_cp):
    arch = CFGS[family]['arch']
    model = CycleMLP(arch, mixer_backend=backend, with_cp=with_cp).double()
    image = torch.randn(2, 3, 77, 106, dtype=torch.float64)
    outputs, grads = step(model, image)
    expected, expected_grads = step(published_form(model), image)
    assert all(worst(a, b) < 1e-12 for a, b in zip(outputs, expected, strict=True))
    for (name, got), theirs in zip(grads.items(), expected_grads.values(), strict=True):
        assert worst(got, theirs) < 1e-10, name


@pytest.mark.slow
@pytest.mark.parametrize('arch', CycleMLP.arch_zoo)
def test_every_arch(arch):
    model = CycleMLP(arch).eval()
    published = published_form(model)
    image = torch.randn(1, 3, 224, 288)
    with torch.no_grad():
        ours, theirs = model(image), published(image)
        exact = published.double()(image.double())
        double = model.double()(image.double())
    for a, b, e, d in zip(ours, theirs, exact, double, strict=True):
        # How far float32 lies from exact numbers depends on the processor: B3 up to 1.9e-6.
        assert worst(a.double(), e) <= 1.5 * worst(b.double(), e) < 4e-6
        assert distance(a, e) <= 2 * distance(b, e)
        assert worst(d, e) < 1e-12
