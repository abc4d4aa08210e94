"""Settings that nothing takes, or that no training can use, are found; all that is right passes."""

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from paths import ROOT

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.settings import check_settings

DET, SEG, CLS = ('retinanet_cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small', 'cyclemlp_demo')
BEST = 'default_hooks.checkpoint.save_best'


def findings(config, options=None):
    """Findings as texts, of a config or of a shipped one's name with options."""
    cfg = config if isinstance(config, Config) else load_config(config, options)
    if cfg.default_scope != 'mmengine':
        pytest.importorskip(cfg.default_scope)
        require_toolbox(cfg)
    init_default_scope(cfg.default_scope)
    report = Report()
    check_settings(report, cfg)
    return [str(finding) for finding in report.findings]


@pytest.mark.parametrize('toolbox', ['mmdet', 'mmseg', 'mmpretrain'])
def test_shipped_configs_pass(toolbox):
    cfgs = [load_config(path.stem) for path in (ROOT / 'configs').glob('*.py')]
    cfgs = [cfg for cfg in cfgs if cfg.default_scope == toolbox]
    assert len(cfgs) > 5
    assert {cfg.filename: said for cfg in cfgs if (said := findings(cfg))} == {}


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
    assert findings(Config(cfg)) == []
    cfg['optim_wrapper']['b'] = dict(part, optimizer=dict(type='SGD', lr=-1))
    assert 'optim_wrapper.b.optimizer: SGD cannot be built' in findings(Config(cfg))[0]


@pytest.mark.parametrize(
    'config, key, right',
    [
        (DET, 'train_dataloader.batchsize', 'batch_size'),
        (DET, 'val_dataloader.num_worker', 'num_workers'),
        (SEG, 'train_dataloader.sampler.shufle', 'shuffle'),
        (DET, 'train_dataloader.dataset.filter_config', 'filter_cfg'),
        (CLS, 'train_dataloader.dataset.with_labels', 'with_label'),
        (SEG, 'train_dataloader.dataset.pipeline.1.imdecode_backends', 'imdecode_backend'),
        (DET, 'train_dataloader.dataset.pipeline.3.probability', 'prob'),
        (DET, 'optim_wrapper.clip_grads', 'clip_grad'),
        (DET, 'optim_wrapper.clip_grad.maxnorm', 'max_norm'),
        (SEG, 'optim_wrapper.optimizer.weight_deacy', 'weight_decay'),
        (DET, 'optim_wrapper.paramwise_cfg.norm_decay_mul', 'norm_decay_mult'),
        (DET, 'param_scheduler.0.start_facto', 'start_factor'),
        (DET, 'default_hooks.logger.intervall', 'interval'),
        (SEG, 'default_hooks.checkpoint.max_keep_ckpt', 'max_keep_ckpts'),
        (CLS, 'default_hooks.checkpoint.savebest', 'save_best'),
        (DET, 'train_cfg.max_epoch', 'max_epochs'),
        (SEG, 'train_cfg.val_intervals', 'val_interval'),
        (DET, 'val_evaluator.metrics_items', 'metric_items'),
        (SEG, 'test_evaluator.iou_metric', 'iou_metrics'),
        (DET, 'visualizer.linewidth', 'line_width'),
        (DET, 'log_processor.window', 'window_size'),
        (DET, 'env_cfg.cudnn_benchmarks', 'cudnn_benchmark'),
        (DET, 'randomness.sed', 'seed'),
        (DET, 'auto_scale_lr.base_batchsize', 'base_batch_size'),
    ],
)
def test_a_misspelt_setting_is_named_with_the_right_one(config, key, right):
    [found] = findings(config, {key: 1})
    for number in '0123':
        key = key.replace(f'.{number}.', f'[{number}].')
    assert found.startswith(f'error: {key}: there is no such setting') and right in found


@pytest.mark.parametrize(
    'option, expected',
    {
        'optim_wrapper.optimizer.type=Adamm': "optim_wrapper.optimizer.type: there is no 'Adamm'",
        'optim_wrapper.optimizer.lr=abc': 'optim_wrapper.optimizer: AdamW cannot be built',
        'optim_wrapper.type=Nope': "optim_wrapper.type: there is no 'Nope'",
        'train_cfg.type=Nope': "train_cfg.type: there is no 'Nope'",
        'val_evaluator.type=Nope': "val_evaluator.type: there is no 'Nope'",
        'param_scheduler.0.type=Nope': "param_scheduler[0].type: there is no 'Nope'",
        'default_hooks.logger.type=Nope': "default_hooks.logger.type: there is no 'Nope'",
        'train_dataloader.sampler.type=Nope': "sampler.type: there is no 'Nope'",
        'val_dataloader.dataset.pipeline.0.type=Nope': "pipeline[0].type: there is no 'Nope'",
        'train_cfg.max_epochs=abc': "train_cfg.max_epochs: is 'abc', but must be a whole number",
        'train_cfg.max_epochs=0': 'train_cfg.max_epochs: is 0, but must be a whole number from 1',
        'randomness.seed=abc': "randomness.seed: is 'abc', but must be a whole number from 0",
        'max_bad_fraction=abc': "max_bad_fraction: is 'abc', but must be a number in [0, 1]",
        'max_non_finite=abc': "max_non_finite: is 'abc', but must be a whole number from 1",
        'train_dataloader.batch_size=0': 'train_dataloader.batch_size: is 0, but must be',
        'val_dataloader.num_workers=-1': 'val_dataloader.num_workers: is -1, but must be',
        'train_dataloader.num_workers=0': 'persistent_workers: is True, but num_workers is 0',
        'default_hooks.logger.interval=0': 'default_hooks.logger.interval: is 0, but must be',
        'default_hooks.checkpoint.interval=x': "checkpoint.interval: is 'x', but must be",
        'val_dataloader=None': 'val_dataloader: is None, but not all of val_dataloader, val_cfg',
        'train_dataloader=None': 'train_dataloader: is None; a training needs it',
        'model=None': 'model: is None; a training needs it',
    }.items(),
)
def test_values_that_no_training_can_use(option, expected):
    key, value = option.split('=')
    value = None if value == 'None' else int(value) if value.strip('-').isdigit() else value
    found = findings(DET, {key: value})
    assert found[0].startswith('error: ') and expected in found[0], found


@pytest.mark.parametrize(
    'key', ['model', 'train_cfg', 'default_hooks', 'default_hooks.logger', 'train_dataloader']
)
@pytest.mark.parametrize('value', [3, [3]])
def test_sections_that_are_no_settings(key, value):
    with pytest.raises(UserError, match=rf': {key} is .*must be settings, dict'):
        load_config(DET, {key: value})


@pytest.mark.parametrize('key', ['param_scheduler', 'custom_hooks', 'val_evaluator'])
@pytest.mark.parametrize('value', [3, [3]])
def test_sections_that_are_no_lists(key, value):
    with pytest.raises(UserError, match=rf': {key} is .*must be a list of settings'):
        load_config(DET, {key: value})


@pytest.mark.parametrize(
    'config, key, value, gives',
    [
        (DET, BEST, 'bbox_mAP', 'coco/bbox_mAP'),
        (DET, BEST, 'coco/segm_mAP', 'coco/bbox_mAP'),
        (DET, BEST, ['coco/bbox_mAP', 'mAP'], 'coco/bbox_mAP'),
        (SEG, BEST, 'miou', 'mIoU'),
        (CLS, BEST, 'top1', 'accuracy/top1'),
        (DET, 'custom_hooks', [dict(type='EarlyStoppingHook', monitor='mAP')], 'coco/bbox_mAP'),
        (SEG, 'param_scheduler', [dict(type='ReduceOnPlateauLR', monitor='IoU')], 'mIoU'),
    ],
)
def test_a_figure_that_the_evaluation_does_not_give(config, key, value, gives):
    [found] = findings(config, {key: value})
    assert 'which the evaluation does not give' in found and gives in found


@pytest.mark.parametrize(
    'config, options',
    [
        (DET, {BEST: 'coco/bbox_mAP_75'}),
        (DET, {BEST: 'auto'}),
        (SEG, {BEST: ['mIoU', 'aAcc']}),
        (SEG, {BEST: 'mDice', 'val_evaluator.iou_metrics': ['mDice']}),
        (DET, {BEST: 'my/bbox_mAP', 'val_evaluator.prefix': 'my'}),
        (DET, {BEST: 'coco/a_precision', 'val_evaluator.classwise': True}),
        (
            DET,
            {
                'optim_wrapper.constructor': 'LearningRateDecayOptimizerConstructor',
                'optim_wrapper.paramwise_cfg': dict(decay_rate=0.9),
            },
        ),
        (DET, {'default_hooks.logger.priority': 'LOW', 'train_dataloader.pin_memory': True}),
        (DET, {'train_dataloader.dataset.indices': 4, 'train_dataloader.num_batch_per_epoch': 2}),
    ],
)
def test_what_is_right_passes(config, options):
    assert findings(config, options) == []


def test_settings_in_settings():
    inner = dict(type='CocoDataset', anfile='x', pipeline=[dict(type='Resize', scales=(9, 9))])
    dataset = dict(_delete_=True, type='RepeatDataset', times=2, dataset=inner)
    assert [
        text.split(': ')[1] for text in findings(DET, {'train_dataloader.dataset': dataset})
    ] == [
        'train_dataloader.dataset.dataset.anfile',
        'train_dataloader.dataset.dataset.pipeline[0].scales',
    ]


def test_a_strategy_that_no_runner_reads():
    [found] = findings(DET, {'strategy': dict(type='ShardedStrategy')})
    assert 'strategy: is read by runner_type="FlexibleRunner" only' in found
