"""The work dir is looked at before a training: can it be written, is there space."""

import shutil
from collections import namedtuple

import pytest
import torch
from mmengine.config import Config

from cyclemlp_mm.preflight.findings import Report
from cyclemlp_mm.preflight.machine import check_work_dir

_Usage = namedtuple('_Usage', 'total used free')
#: A checkpoint of a model of 2**20 parameters: weights and what Adam keeps of each, in MiB.
MIB = 12


@pytest.mark.parametrize(
    'free, kept, levels',
    [(1.5, 1, ['error']), (2.5, 1, []), (2.5, 3, ['warning']), (4.5, 3, []), (2.5, -1, [])],
)
def test_space_for_checkpoints(tmp_path, monkeypatch, free, kept, levels):
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: _Usage(0, 0, int(free * MIB * 2**20)))
    hook = dict(type='CheckpointHook', max_keep_ckpts=kept)
    cfg = Config(dict(work_dir=str(tmp_path / 'new'), default_hooks=dict(checkpoint=hook)))
    model = torch.nn.Linear(2**10, 2**10, bias=False)
    report = Report()
    check_work_dir(report, cfg, model)
    assert [finding.level for finding in report.findings] == levels
    for finding in report.findings:
        assert f'a checkpoint takes about {MIB} MiB' in finding.what
        assert finding.where == str(tmp_path)
