"""A small backbone of each family; keyword arguments go to its class."""

import pytest

from cyclemlp_mm.models import CycleMLP, MPViT

SHAPES = dict(depths=(1, 1, 1, 1), widths=(8, 16, 16, 24))
CYCLE = dict(**SHAPES, mlp_ratios=(2, 2, 2, 2), reweight=True, downsample='conv')
REPMLP = dict(channels=[8, 16, 32, 64], depths=[1, 1, 1, 1], sharesets_nums=[1, 4, 8, 16])


def reweighted(**kwargs):
    return CycleMLP(CYCLE, **kwargs)


def summed(**kwargs):
    return CycleMLP(dict(CYCLE, reweight=False, downsample='patch_merging'), **kwargs)


def mpvit(**kwargs):
    return MPViT(dict(**SHAPES, paths=(2, 3, 3, 3), mlp_ratio=2), **kwargs)


def repmlp(**kwargs):
    pytest.importorskip('mmpretrain')
    from cyclemlp_mm.models.repmlp import RepMLPNet

    return RepMLPNet(REPMLP, 64, **kwargs)


FAMILIES = dict(reweighted=reweighted, summed=summed, mpvit=mpvit, repmlp=repmlp)
