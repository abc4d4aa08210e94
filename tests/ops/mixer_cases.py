"""Weights, maps and measures of error for the tests of the mixer."""

import torch

from cyclemlp_mm.ops import MixerWeights, ReweightWeights

#: (batch, height, width): one cell, a row, a column, odd, long and thin, several images.
SHAPES = [(1, 1, 1), (2, 1, 9), (3, 9, 1), (1, 2, 2), (2, 7, 5), (8, 3, 4), (1, 4, 61), (2, 45, 3)]


def random_weights(channels, reweight, dtype):
    def parameter(*shape):
        scale = 0.5 if len(shape) == 1 else shape[1] ** -0.5
        return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    c, hidden = channels, max(1, channels // 4)
    branches = None
    if reweight:
        branches = ReweightWeights(
            parameter(hidden, c), parameter(hidden), parameter(3 * c, hidden), parameter(3 * c)
        )
    shapes = [(c, c), (c,), (c, c), (c,), (c, c), (c, c), (c,)]
    return MixerWeights(*(parameter(*shape) for shape in shapes), branches)


def named(weights):
    """Every parameter under its name."""
    flat = {k: v for k, v in weights._asdict().items() if k != 'reweight'}
    if weights.reweight is not None:
        flat |= {f'reweight.{k}': v for k, v in weights.reweight._asdict().items()}
    return flat


def cast(weights, dtype):
    """The same numbers in another dtype."""

    def of(t):
        return t.detach().to(dtype).requires_grad_()

    reweight = weights.reweight and ReweightWeights(*map(of, weights.reweight))
    return MixerWeights(*map(of, weights[:-1]), reweight)


def run(mixer, x, weights):
    """Output and every gradient, of a cost that weighs all outputs differently."""
    x = x.detach().requires_grad_()
    y = mixer(x, weights)
    parameters = named(weights)
    cost = torch.sin(torch.arange(y.numel(), dtype=torch.float64) * 0.7 + 0.3).view(y.shape)
    grads = torch.autograd.grad(y, [x, *parameters.values()], cost.to(y.dtype))
    return y.detach(), dict(zip(['x', *parameters], grads, strict=True))


def worst(got, expected):
    """Largest difference over the largest number."""
    assert got.shape == expected.shape
    scale = expected.abs().max().clamp_min(1e-300).double()
    return float((got.double() - expected.double()).abs().max() / scale)


def distance(got, exact):
    """Relative error in the Euclidean norm."""
    assert got.shape == exact.shape
    return float((got.double() - exact).norm() / exact.norm())
