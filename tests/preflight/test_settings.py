"""Settings: all shipped configs pass, and so does what is unusual but right."""

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from paths import ROOT

from cyclemlp_mm.engine import load_config
from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.settings import check_settings


def said_of(cfg):
    init_default_scope(cfg.default_scope)
    report = Report()
    check_settings(report, cfg)
    return [str(finding) for finding in report.findings]


@pytest.fixture(scope='module')
def shipped():
    return [load_config(path.stem) for path in (ROOT / 'configs').glob('*.py')]


@pytest.mark.parametrize('toolbox', ['mmdet', 'mmseg', 'mmpretrain'])
def test_shipped_configs_pass(toolbox, shipped):
    pytest.importorskip(toolbox)
    cfgs = [cfg for cfg in shipped if cfg.default_scope == toolbox]
    assert len(cfgs) > 5
    assert {cfg.filename: said for cfg in cfgs if (said := said_of(cfg))} == {}


def test_unusual_settings_pass():
    part = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    loader = dict(dataset=dict(type='ConcatDataset'))
    cfg = dict(
        default_scope='mmengine',
        model=dict(type='A'),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=10.0),
        param_scheduler=dict(a=[dict(type='X')]),
        optim_wrapper=dict(constructor='Mine', a=part, b=part),
        randomness=dict(seed=None),
        val_evaluator=[dict(type='DumpResults')],
        val_dataloader=loader,
        val_cfg={},
        max_bad_fraction=1,
    )
    assert said_of(Config(cfg)) == []
    cfg['optim_wrapper']['b'] = dict(part, optimizer=dict(type='SGD', lr=-1))
    assert 'optim_wrapper.b.optimizer: SGD cannot be built' in said_of(Config(cfg))[0]
