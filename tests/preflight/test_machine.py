"""What a training needs of the machine: space for checkpoints and batches, layers to shard."""

import os
import shutil
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from torch import nn

from cyclemlp_mm.engine import load_config
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.machine import check_layers, check_shared_memory, check_work_dir

#: A checkpoint of a model of 2**20 parameters: weights and what Adam keeps of each, in MiB.
MIB = 12
DETECTOR, SEGMENTOR = 'retinanet_cyclemlp_b1_fpn_1x_coco', 'fpn_cyclemlp_b1_512x512_40k_ade20k'


def findings(check, *arguments):
    report = Report()
    check(report, *arguments)
    return report.findings


@pytest.mark.parametrize(
    'free, kept, levels',
    [(1.5, 1, ['error']), (2.5, 1, []), (2.5, 3, ['warning']), (4.5, 3, []), (2.5, -1, [])],
)
def test_space_for_checkpoints(tmp_path, monkeypatch, free, kept, levels):
    usage = SimpleNamespace(free=int(free * MIB * 2**20))
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
    hook = dict(type='CheckpointHook', max_keep_ckpts=kept)
    cfg = Config(dict(work_dir=str(tmp_path / 'new'), default_hooks=dict(checkpoint=hook)))
    found = findings(check_work_dir, cfg, nn.Linear(2**10, 2**10, bias=False))
    assert [finding.level for finding in found] == levels
    for finding in found:
        assert f'a checkpoint takes about {MIB} MiB' in finding.what
        assert finding.where == str(tmp_path)


@pytest.mark.parametrize(
    'config, megabytes, expected',
    [
        (DETECTOR, 20, 'warning: train_dataloader.num_workers'),
        (DETECTOR, 1, 'error: train_dataloader.num_workers'),
        (DETECTOR, 8000, None),
        (SEGMENTOR, 1, 'error: train_dataloader.num_workers'),
        (SEGMENTOR, 1000, None),
        ('cyclemlp_b1_in1k', 20, 'warning: train_dataloader.num_workers'),
        ('retinanet_cyclemlp_demo', 64, None),  # Docker's default
    ],
)
def test_a_small_shared_memory(monkeypatch, config, megabytes, expected):
    status = SimpleNamespace(f_bavail=megabytes * 1000, f_frsize=1000)
    monkeypatch.setattr(os, 'statvfs', lambda path: status)
    found = list(map(str, findings(check_shared_memory, load_config(config))))
    assert len(found) == bool(expected)
    for text in found:
        assert text.startswith(expected) and '--shm-size' in text and f'has {megabytes} MB' in text


def test_without_workers_no_memory_is_needed(monkeypatch):
    monkeypatch.setattr(os, 'statvfs', lambda path: SimpleNamespace(f_bavail=0, f_frsize=1))
    for loader in (None, dict(num_workers=0, dataset=dict(pipeline=[dict(scale=(640, 480))]))):
        assert not findings(check_shared_memory, Config(dict(train_dataloader=loader)))


@pytest.mark.parametrize(
    'config, model, is_found',
    [
        (
            'upernet_cyclemlp_b5_512x512_160k_ade20k_fsdp',
            lambda: CycleMLP('b1', out_indices=0),
            False,
        ),
        ('upernet_cyclemlp_b5_512x512_160k_ade20k_fsdp', lambda: nn.Linear(2, 2), True),
        ('retinanet_cyclemlp_demo', lambda: nn.Linear(2, 2), False),
    ],
)
def test_layers_to_shard_that_are_not_in_the_model(config, model, is_found):
    found = findings(check_layers, load_config(config), model())
    assert len(found) == is_found
    assert not found or 'no layer of a class CycleBlock, EncoderLayer' in str(found[0])
