"""The Triton kernels against the reference, in Triton's interpreter on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mixer_cases import cast, distance, random_weights, run, worst

from cyclemlp_mm.ops import cycle_mixer

# The interpreter is switched on when the kernels are defined, so a process of its own runs them.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

SHAPES = [(1, 1, 1), (2, 1, 9), (1, 9, 1), (2, 7, 5), (1, 4, 61), (1, 45, 13)]


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


@pytest.mark.skipif(not INTERPRETED, reason='runs inside test_in_the_interpreter')
@pytest.mark.parametrize('reweight', [True, False])
@pytest.mark.parametrize('channels', [1, 8, 33, 70])
def test_equals_the_reference(channels, reweight):
    for shape in SHAPES:
        weights = random_weights(channels, reweight, torch.float32)
        x = torch.randn(*shape, channels)
        _, exact_grads = run(
            lambda x, w: cycle_mixer(x, w, 'reference'), x.double(), cast(weights, torch.float64)
        )
        plain, plain_grads = run(lambda x, w: cycle_mixer(x, w, 'reference'), x, weights)
        y, grads = run(lambda x, w: cycle_mixer(x, w, 'triton'), x, weights)
        assert worst(y, plain) < 2e-6, shape
        for name, grad in grads.items():
            # Sums of many signs: judged by the reference's own distance from float64.
            limit = max(4 * distance(plain_grads[name], exact_grads[name]), 2e-6)
            assert distance(grad, exact_grads[name]) < limit, (shape, name)


@pytest.mark.skipif(not INTERPRETED, reason='runs inside test_in_the_interpreter')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_the_reference(dtype):
    weights = random_weights(40, True, dtype)
    x = torch.randn(2, 13, 11, 40).to(dtype)
    exact, exact_grads = run(
        lambda x, w: cycle_mixer(x, w, 'reference'), x.double(), cast(weights, torch.float64)
    )
    plain, plain_grads = run(lambda x, w: cycle_mixer(x, w, 'reference'), x, weights)
    y, grads = run(lambda x, w: cycle_mixer(x, w, 'triton'), x, weights)
    assert y.dtype == dtype
    assert distance(y, exact) <= 2 * distance(plain, exact)
    for name, grad in grads.items():
        limit = 2 * distance(plain_grads[name], exact_grads[name])
        assert distance(grad, exact_grads[name]) <= limit, name


@pytest.mark.skipif(not INTERPRETED, reason='runs inside test_in_the_interpreter')
@pytest.mark.parametrize('reweight', [True, False])
def test_second_derivatives(reweight):
    weights = random_weights(8, reweight, torch.float32)
    x, direction = torch.randn(2, 2, 7, 5, 8)
    products = [
        torch.autograd.functional.hvp(
            lambda x, form=form: cycle_mixer(x, weights, form).sin().sum(), x, direction
        )[1]
        for form in ('triton', 'reference')
    ]
    assert worst(*products) < 1e-5


@pytest.mark.skipif(not INTERPRETED, reason='runs inside test_in_the_interpreter')
def test_forward_mode():
    weights = cast(random_weights(8, True, torch.float32), torch.float32)
    x, direction = torch.randn(2, 2, 7, 5, 8)
    tangents = [
        torch.func.jvp(lambda x, form=form: cycle_mixer(x, weights, form), (x,), (direction,))[1]
        for form in ('triton', 'reference')
    ]
    assert tangents[1].abs().max() > 0.1
    assert worst(*(t.detach() for t in tangents)) < 1e-5
