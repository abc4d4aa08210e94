"""Settings that nothing takes, or that no training can use, are found; all that is right passes."""

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from paths import ROOT

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.settings import check_schedule, check_settings

STEPS = 'retinanet_cyclemlp_b1_fpn_6e_small'
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
    check_schedule(report, cfg)
    return [str(finding) for finding in report.findings]


@pytest.mark.parametrize('toolbox', ['mmdet', 'mmseg', 'mmpretrain'])
def test_shipped_configs_pass(toolbox):
    cfgs = [load_config(path.stem) for path in (ROOT / 'configs').glob('*.py')]
    cfgs = [cfg for cfg in cfgs if cfg.default_scope == toolbox]
    assert len(cfgs) > 5
    assert {cfg.filename: said for cfg in cfgs if (said := findings(cfg))} == {}


@pytest.mark.parametrize(
    'config, options, said',
    [
        (
            DET,
            {'train_cfg.max_epochs': 50},
            'param_scheduler[1].end: is 6, but train_cfg.max_epoch',
        ),
        (DET, {'train_cfg.max_epochs': 2}, 'param_scheduler[1].end: is 6, but train_cfg.max_epoch'),
        (
            SEG,
            {'train_cfg.max_iters': 900},
            'is 900. Give --cfg-options param_scheduler.1.end=900, and',
        ),
        (DET, {'train_cfg.max_epochs': 9, 'param_scheduler.1.end': 9}, None),
        (DET, {'param_scheduler': None}, None),
        (DET, {'param_scheduler.0.begin': 40}, 'param_scheduler[0]: begins at 40, but ends at 40'),
        (STEPS, {}, None),
        (
            STEPS,
            {'train_cfg.max_epochs': 5, 'param_scheduler.1.end': 5},
            'param_scheduler[1].milestones: has [5], but',
        ),
    ],
)
def test_a_schedule_of_another_length_is_a_warning(config, options, said):
    found = [text for text in findings(config, options) if 'schedule' in text]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_unusual_settings_pass():
    part = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    loader = dict(dataset=dict(type='ConcatDataset'))
    cfg = dict(
        default_scope='mmengine',
        model=dict(type='A'),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=10.0),
        param_scheduler=dict(a=[dict(type='ConstantLR')]),
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
    cfg = load_config(config)
    cfg.merge_from_dict({key: 1})
    [found] = findings(cfg)
    for number in '0123':
        key = key.replace(f'.{number}.', f'[{number}].')
    assert found.startswith(f'error: {key}: there is no such setting') and right in found


def test_variables_of_a_config_are_not_sections():
    merged = dict(type='AdamW', lr=1e-4, momentum=0.9)  # by mmengine, from a base's SGD
    others = dict(transforms=[dict(type='HorizontalFlip')], metrics=dict(type='bbox'))
    more = dict(dataset=dict(type='coco'), pipeline=[dict(type='x')], clip_grad=dict(norm=1))
    cfg = load_config(DET)
    cfg.update(optimizer=merged, **others, **more)
    assert not findings(cfg)
    [found] = findings(DET, {'train_dataloader.dataset.type': 'coco'})
    assert found.startswith("error: train_dataloader.dataset.type: there is no 'coco'")


@pytest.mark.parametrize(
    'key, value, said',
    [
        ('custom_hook', [dict(type='EMAHook')], 'error: custom_hook: is read by nothing. Did you'),
        ('train_dataloder', dict(batch_size=2), 'read by nothing. Did you mean train_dataloader?'),
        ('max_bad_fractoin', 0.5, 'Did you mean max_bad_fraction?'),
        ('lr_config', dict(policy='step'), 'warning: lr_config: is of an earlier version'),
        ('model.test_cfg.scor_thr', 0.9, 'Did you mean score_thr?'),
        ('model.train_cfg.debugg', True, 'Did you mean debug?'),
        ('train_dataloader.dataset.filter_cfg.min_sise', 1, 'Did you mean min_size?'),
        ('auto_scale_lr.enable', 'False', "is the text 'False', which counts as true"),
        ('model.data_preprocessor.bgr_to_rgb', 'no', "is the text 'no', which counts as true"),
        ('val_dataloader.drop_last', True, 'images of an incomplete last batch would not be eval'),
        ('train_dataloader.drop_last', True, 'next to a batch_sampler'),
        ('optim_wrapper.clip_grad', 35, 'Set it to dict(max_norm=35)'),
        ('log_level', 'INF', "is 'INF'"),
        ('test_evaluator.metric', 'segm', "is 'segm', but the model predicts no masks"),
        ('test_evaluator.metric', 'bboxx', "is 'bboxx', which COCO does not have"),
        (
            'optim_wrapper.paramwise_cfg',
            dict(layer_decay_rate=0.7),
            "is read by constructor='LearningRateDecayOptimWrapperConstructor' only",
        ),
    ],
)
def test_what_a_config_file_may_hold_without_effect(key, value, said):
    cfg = load_config(DET)
    cfg.merge_from_dict({key: value})
    [found] = findings(cfg)
    assert said in found


def test_a_name_of_the_config_that_its_own_text_reads(tmp_path):
    file = tmp_path / 'c.py'
    file.write_text(
        f"_base_ = '{ROOT}/configs/{DET}.py'\n"
        "custom_hook = dict(type='EMAHook')\ncustom_hooks = [custom_hook]\n"
    )
    cfg = load_config(str(file))
    assert findings(cfg) == []
    cfg.dump(tmp_path / 'dumped.py')  # where the text reads it no longer
    assert findings(load_config(str(tmp_path / 'dumped.py'))) == []


TYPES = ('optim_wrapper.optimizer', 'optim_wrapper', 'train_cfg', 'val_evaluator')
TYPES += ('param_scheduler.0', 'default_hooks.logger', 'train_dataloader.sampler')
WHOLE = 'but must be a whole number from'


@pytest.mark.parametrize(
    'key, value, expected',
    [
        *((f'{key}.type', 'Nope', "type: there is no 'Nope'") for key in TYPES),
        ('val_dataloader.dataset.pipeline.0.type', 'Nope', "pipeline[0].type: there is no 'Nope'"),
        ('optim_wrapper.optimizer.lr', 'abc', 'error: optim_wrapper.optimizer: AdamW cannot be'),
        ('train_cfg.max_epochs', 'abc', f"is 'abc', {WHOLE} 1"),
        ('train_cfg.max_epochs', 0, f'is 0, {WHOLE} 1'),
        ('randomness.seed', 'abc', f"is 'abc', {WHOLE} 0"),
        ('randomness.seed', 2**32, f'is 4294967296, {WHOLE} 0 to 4294967295'),
        ('max_bad_fraction', 'abc', "is 'abc', but must be a number in [0, 1]"),
        ('max_non_finite', 'abc', f"is 'abc', {WHOLE} 1"),
        ('train_dataloader.batch_size', 0, f'is 0, {WHOLE} 1'),
        ('val_dataloader.num_workers', -1, f'is -1, {WHOLE} 0'),
        ('default_hooks.logger.interval', 0, f'is 0, {WHOLE} 1'),
        ('default_hooks.checkpoint.interval', 'x', f"is 'x', {WHOLE} -1"),
        ('train_dataloader.num_workers', 0, 'error: train_dataloader.persistent_workers: is True'),
        ('val_dataloader', None, 'is None, but not all of val_dataloader, val_cfg'),
        ('train_dataloader', None, 'is None; a training needs it'),
        ('model', None, 'is None; a training needs it'),
        ('strategy', dict(type='ShardedStrategy'), 'is read by runner_type="FlexibleRunner" only'),
    ],
)
def test_values_that_no_training_can_use(key, value, expected):
    found = findings(DET, {key: value})[0]
    start = expected if expected.startswith('error') else f'error: {key.replace(".0", "[0]")}'
    assert found.startswith(start) and expected in found


@pytest.mark.parametrize(
    'key, expected',
    [
        *((key, 'settings, dict') for key in ('model', 'train_cfg', 'default_hooks.logger')),
        *((key, 'settings, dict') for key in ('default_hooks', 'train_dataloader')),
        *((key, 'a list of settings') for key in ('param_scheduler', 'custom_hooks')),
        ('val_evaluator', 'a list of settings'),
    ],
)
@pytest.mark.parametrize('value', [3, [3]])
def test_sections_of_another_kind(key, expected, value):
    with pytest.raises(UserError, match=rf': {key} is .*must be {expected}'):
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


@pytest.mark.parametrize('rate', ['layer_decay_rate', 'layer_decay_rat'])
def test_rates_of_layers(rate):
    options = {'optim_wrapper.constructor': 'LearningRateDecayOptimWrapperConstructor'}
    options['optim_wrapper.paramwise_cfg'] = {rate: 0.7}
    found = findings(CLS, options)
    assert (found == []) == (rate == 'layer_decay_rate')
    assert all('Did you mean layer_decay_rate' in text for text in found)


DECAY = 'LearningRateDecayOptimizerConstructor'


@pytest.mark.parametrize(
    'config, options',
    [
        (DET, {BEST: 'coco/bbox_mAP_75'}),
        (DET, {BEST: 'auto'}),
        (SEG, {BEST: ['mIoU', 'aAcc']}),
        (SEG, {BEST: 'mDice', 'val_evaluator.iou_metrics': ['mDice']}),
        (DET, {BEST: 'my/bbox_mAP', 'val_evaluator.prefix': 'my'}),
        (DET, {BEST: 'coco/a_precision', 'val_evaluator.classwise': True}),
        (DET, {'optim_wrapper.constructor': DECAY, 'optim_wrapper.paramwise_cfg': dict(rate=0.9)}),
        (DET, {'default_hooks.logger.priority': 'LOW', 'train_dataloader.pin_memory': True}),
        (DET, {'train_dataloader.dataset.indices': 4, 'train_dataloader.num_batch_per_epoch': 2}),
    ],
)
def test_what_is_right_passes(config, options):
    assert findings(config, options) == []


def test_settings_in_settings():
    inner = dict(type='CocoDataset', anfile='x', pipeline=[dict(type='Resize', scales=(9, 9))])
    dataset = dict(_delete_=True, type='RepeatDataset', times=2, dataset=inner)
    found = findings(DET, {'train_dataloader.dataset': dataset})
    keys = ('train_dataloader.dataset.dataset.anfile', 'dataset.dataset.pipeline[0].scales')
    assert len(found) == 2 and all(key in text for key, text in zip(keys, found))
