"""What FSDP shall deal out one by one is looked for in the model."""

import pytest
from torch import nn

from cyclemlp_mm.engine import load_config
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.preflight.findings import Report
from cyclemlp_mm.preflight.machine import check_layers


@pytest.mark.parametrize(
    ('model', 'warned'),
    [
        (lambda: CycleMLP('b1', out_indices=0), False),
        (lambda: nn.Sequential(nn.Linear(2, 2)), True),
    ],
)
def test_layers_that_are_not_in_the_model(model, warned):
    report = Report()
    cfg = load_config('upernet_cyclemlp_b5_512x512_160k_ade20k_fsdp')
    check_layers(report, cfg, model())
    assert bool(report.findings) == warned
    assert not warned or 'no layer of a class CycleBlock, EncoderLayer' in str(report)


def test_a_config_without_strategy():
    report = Report()
    check_layers(report, load_config('retinanet_cyclemlp_demo'), nn.Linear(2, 2))
    assert not report.findings
