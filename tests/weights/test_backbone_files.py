"""Files of a backbone alone, under our names, in detectors, segmentors and backbones."""

import warnings

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint

import cyclemlp_mm.safe_loading  # noqa: F401
from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.weights.whole_model import for_mmengine

ROW = dict(depths=(1, 1, 1, 1), widths=(8, 16, 24, 32))
BUILD = {
    'cyclemlp': lambda: CycleMLP(
        dict(**ROW, mlp_ratios=(2, 2, 2, 2), reweight=True, downsample='conv')
    ),
    'mpvit': lambda: MPViT(dict(**ROW, paths=(2, 2, 2, 2), mlp_ratio=2)),
}


class Detector(BaseModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, torch.nn.Linear(2, 3)


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.'])
@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('family', BUILD)
def test_loads_into_a_detector_and_into_a_backbone(family, wrapper, prefix, tmp_path):
    source = BUILD[family]()
    state = {prefix + name: torch.rand_like(t.float()) for name, t in source.state_dict().items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / 'file.pth')
    detector, backbone = Detector(BUILD[family]()), BUILD[family]()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        content = load_checkpoint(detector, str(tmp_path / 'file.pth'), map_location='cpu')
        load_checkpoint(backbone, str(tmp_path / 'file.pth'), map_location='cpu', strict=True)
    assert content['meta'] == {}  # mmseg's init_model looks for it
    for name, tensor in backbone.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, state[prefix + name])
            assert torch.equal(detector.backbone.state_dict()[name], tensor)


def test_other_files_are_left_alone():
    content = {'conv1.weight': torch.ones(1), 'stages.0.blocks.0.bn.weight': torch.ones(1)}
    assert for_mmengine(dict(content), 'x') == content
