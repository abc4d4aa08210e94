"""The Triton kernels against the reference, in Triton's interpreter on a CPU."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from mixer_cases import cast, distance, random_weights, run, worst

from cyclemlp_mm.ops import cycle_mixer

# The interpreter is switched on when the kernels are defined, so a process of its own runs them.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
interpreted = pytest.mark.skipif(not INTERPRETED, reason='runs inside test_in_the_interpreter')

SHAPES = [(1, 1, 1), (2, 1, 9), (1, 9, 1), (2, 7, 5), (1, 4, 61), (1, 45, 13)]
reference, kernels = (partial(cycle_mixer, backend=name) for name in ('reference', 'triton'))


@pytest.mark.slow
def test_in_the_interpreter():
    pytest.importorskip('triton', minversion='3.0')  # before, it had no such interpreter
    if INTERPRETED:
        return
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(here)],
        env=os.environ | {'TRITON_INTERPRET': '1'},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'skipped' not in done.stdout.splitlines()[-1]


def compare(x, weights, factor, least):
    """Gradients, sums of many signs, are judged by the reference's own distance from float64."""
    _, exact_grads = run(reference, x.double(), cast(weights, torch.float64))
    (plain, plain_grads), (y, grads) = run(reference, x, weights), run(kernels, x, weights)
    for name, grad in grads.items():
        limit = max(factor * distance(plain_grads[name], exact_grads[name]), least)
        assert distance(grad, exact_grads[name]) <= limit, name
    return y, plain


@interpreted
@pytest.mark.parametrize('reweight', [True, False])
@pytest.mark.parametrize('channels', [1, 8, 33, 70])
def test_equals_the_reference(channels, reweight):
    for shape in SHAPES:
        weights = random_weights(channels, reweight, torch.float32)
        y, plain = compare(torch.randn(*shape, channels), weights, 4, 2e-6)
        assert worst(y, plain) < 2e-6, shape


@interpreted
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_the_reference(dtype):
    weights = random_weights(40, True, dtype)
    x = torch.randn(2, 13, 11, 40).to(dtype)
    exact = reference(x.double(), cast(weights, torch.float64)).detach()
    y, plain = compare(x, weights, 2, 0)
    assert y.dtype == dtype
    assert distance(y, exact) <= 2 * distance(plain, exact)


@interpreted
@pytest.mark.parametrize('reweight', [True, False])
def test_second_derivatives_and_forward_mode(reweight):
    weights = cast(random_weights(8, reweight, torch.float32), torch.float32)
    x, direction = torch.randn(2, 2, 7, 5, 8)

    def derivatives(form):
        hvp = torch.autograd.functional.hvp(lambda x: form(x, weights).sin().sum(), x, direction)
        tangent = torch.func.jvp(lambda x: form(x, weights), (x,), (direction,))[1]
        return hvp[1], tangent.detach()

    for got, wanted in zip(derivatives(kernels), derivatives(reference), strict=True):
        assert wanted.abs().max() > 0.1
        assert worst(got, wanted) < 1e-5
