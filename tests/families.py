"""A small backbone of each family, for the tests that every family has to pass."""

import copy
from functools import partial

import pytest
import torch
from mmengine.registry import MODELS
from plain_mpvit import randomise_norms

import cyclemlp_mm  # noqa: F401 - registers the backbones

SHAPES = dict(depths=(1, 1, 1, 1), widths=(8, 16, 16, 24))
CYCLE = dict(**SHAPES, mlp_ratios=(2, 2, 2, 2), reweight=True, downsample='conv')
SUMMED = dict(CYCLE, reweight=False, downsample='patch_merging')
MPVIT = dict(**SHAPES, paths=(2, 3, 3, 3), mlp_ratio=2)
REPMLP = dict(channels=[8, 16, 32, 64], depths=[1, 1, 1, 1], sharesets_nums=[1, 4, 8, 16])
CFGS = {
    'reweighted': dict(type='CycleMLP', arch=CYCLE),
    'summed': dict(type='CycleMLP', arch=SUMMED),
    'mpvit': dict(type='MPViT', arch=MPVIT),
    'repmlp': dict(type='RepMLPNet', arch=REPMLP, img_size=64),
}


def build(family, **kwargs):
    """A backbone of a family; keyword arguments replace those of its class."""
    if family == 'repmlp':
        pytest.importorskip('mmpretrain')
    return MODELS.build(copy.deepcopy({**CFGS[family], **kwargs}))


FAMILIES = {family: partial(build, family) for family in CFGS}
#: The families whose blocks are ours.
OURS = ('reweighted', 'summed', 'mpvit')


def trained(family, seed=0, **kwargs):
    """A backbone with parameters and statistics as a training leaves them, in eval mode."""
    torch.manual_seed(seed)
    model = randomise_norms(build(family, **kwargs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def step(model, image):
    """Levels, and gradients by name, of a cost that weighs all outputs differently."""
    model.zero_grad(set_to_none=True)
    levels = model(image)
    sum(torch.sin(level).sum() for level in levels).backward()
    return [level.detach() for level in levels], {n: p.grad for n, p in model.named_parameters()}


def assert_same_levels(got, wanted, tolerance=1e-9):
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def assert_equal_levels(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
