"""MPViT as a file: recorded from its plain operations, checked against its fast ones."""

import pytest
from mpvit_cases import TINY
from plain_mpvit import randomise_norms
from torch import nn

from cyclemlp_mm.export import export_model
from cyclemlp_mm.models import MPViT, to_deploy


class Model(nn.Module):
    """What a detector is to the exporter: something with a backbone."""

    def __init__(self):
        super().__init__()
        self.backbone = randomise_norms(MPViT(TINY)).eval()


@pytest.mark.slow
@pytest.mark.parametrize('deploy, suffix', [(False, '.pt2'), (True, '.onnx')])
def test_a_file_equals_the_model(deploy, suffix, tmp_path):
    if suffix == '.onnx':
        pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
    model = to_deploy(Model()) if deploy else Model()
    report = export_model(model, tmp_path / f'mpvit{suffix}', 'backbone')
    assert report.path.is_file() and report.difference < 1e-5
