"""Tensors without values: only standard operators know their shapes."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from toy_models import ARCH

from cyclemlp_mm.models import CycleMLP, MPViT, to_deploy


def repmlp():
    pytest.importorskip('mmpretrain')
    from cyclemlp_mm.models.repmlp import RepMLPNet

    arch = dict(channels=[8, 16, 32, 64], depths=[1, 1, 1, 1], sharesets_nums=[1, 4, 8, 16])
    return RepMLPNet(arch, 64)


SHAPES = dict(depths=(1, 1, 1, 1), widths=(8, 16, 16, 24))
FAMILIES = {
    'reweighted': lambda: CycleMLP(ARCH),
    'summed': lambda: CycleMLP(
        dict(**SHAPES, mlp_ratios=(2, 2, 2, 2), reweight=False, downsample='patch_merging')
    ),
    'mpvit': lambda: MPViT(dict(**SHAPES, paths=(2, 3, 3, 3), mlp_ratio=2)),
    'repmlp': repmlp,
}


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('family', FAMILIES)
def test_fake_tensors(family):
    image = torch.randn(1, 3, 64, 96)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        shapes = [level.shape for level in model(image)]
        for form in (model, to_deploy(copy.deepcopy(model))):
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                levels = form(mode.from_tensor(image))
            assert [level.shape for level in levels] == shapes
    with FakeTensorMode():  # the parameters, too
        levels = FAMILIES[family]().train()(torch.empty(2, 3, 64, 96))
        assert [level.shape[1:] for level in levels] == [shape[1:] for shape in shapes]
        sum(level.sum() for level in levels).backward()
