import os
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from cyclemlp_mm.engine import load_config
from cyclemlp_mm.preflight.findings import Report
from cyclemlp_mm.preflight.machine import check_shared_memory


@pytest.mark.parametrize(
    'config, megabytes, found',
    [
        ('retinanet_cyclemlp_b1_fpn_1x_coco', 20, 'warning: train_dataloader.num_workers'),
        ('retinanet_cyclemlp_b1_fpn_1x_coco', 1, 'error: train_dataloader.num_workers'),
        ('retinanet_cyclemlp_b1_fpn_1x_coco', 8000, None),
        ('fpn_cyclemlp_b1_512x512_40k_ade20k', 1, 'error: train_dataloader.num_workers'),
        ('fpn_cyclemlp_b1_512x512_40k_ade20k', 1000, None),
        ('cyclemlp_b1_in1k', 20, 'warning: train_dataloader.num_workers'),
        ('retinanet_cyclemlp_demo', 64, None),  # Docker's default
    ],
)
def test_a_small_shared_memory_is_found_before(monkeypatch, config, megabytes, found):
    status = SimpleNamespace(f_bavail=megabytes * 1000, f_frsize=1000)
    monkeypatch.setattr(os, 'statvfs', lambda path: status)
    report = Report()
    check_shared_memory(report, load_config(config))
    assert len(report.findings) == bool(found)
    if found:
        said = str(report.findings[0])
        assert said.startswith(found) and '--shm-size' in said and f'has {megabytes} MB' in said


def test_without_workers_nothing_is_needed(monkeypatch):
    monkeypatch.setattr(os, 'statvfs', lambda path: SimpleNamespace(f_bavail=0, f_frsize=1))
    for loader in (None, dict(num_workers=0, dataset=dict(pipeline=[dict(scale=(640, 480))]))):
        report = Report()
        check_shared_memory(report, Config(dict(train_dataloader=loader)))
        assert not report.findings
