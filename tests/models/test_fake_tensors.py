"""Tensors without values: only standard operators know their shapes."""

import copy

import pytest
import torch
from families import FAMILIES, build
from torch._subclasses.fake_tensor import FakeTensorMode

from cyclemlp_mm.models import to_deploy


@pytest.mark.few(2)
@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('family', FAMILIES)
def test_fake_tensors(family):
    image = torch.randn(1, 3, 64, 96)
    model = build(family).eval()
    with torch.no_grad():
        shapes = [level.shape for level in model(image)]
        for form in (model, to_deploy(copy.deepcopy(model))):
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                levels = form(mode.from_tensor(image))
            assert [level.shape for level in levels] == shapes
    with FakeTensorMode():  # the parameters, too
        levels = build(family).train()(torch.empty(2, 3, 64, 96))
        assert [level.shape[1:] for level in levels] == [shape[1:] for shape in shapes]
        sum(level.sum() for level in levels).backward()
