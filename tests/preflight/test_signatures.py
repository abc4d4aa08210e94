"""Settings that nothing takes are found before a training; all that is right passes."""

import pytest
from mmengine.registry import init_default_scope

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.settings import check_settings

DET, SEG, CLS = ('retinanet_cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small', 'cyclemlp_demo')


def said_of(config, options):
    cfg = load_config(config, options)
    pytest.importorskip(cfg.default_scope)
    init_default_scope(require_toolbox(cfg))
    report = Report()
    check_settings(report, cfg)
    return [str(finding) for finding in report.findings]


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
    [said] = said_of(config, {key: 1})
    head, name = key.rsplit('.', 1)
    for number in '0123':
        head = head.replace(f'.{number}', f'[{number}]')
    assert said.startswith(f'error: {head}.{name}: there is no such setting')
    assert right in said


@pytest.mark.parametrize(
    'config, key, value, gives',
    [
        (DET, 'default_hooks.checkpoint.save_best', 'bbox_mAP', 'coco/bbox_mAP'),
        (DET, 'default_hooks.checkpoint.save_best', 'coco/segm_mAP', 'coco/bbox_mAP'),
        (DET, 'default_hooks.checkpoint.save_best', ['coco/bbox_mAP', 'mAP'], 'coco/bbox_mAP'),
        (SEG, 'default_hooks.checkpoint.save_best', 'miou', 'mIoU'),
        (CLS, 'default_hooks.checkpoint.save_best', 'top1', 'accuracy/top1'),
        (DET, 'custom_hooks', [dict(type='EarlyStoppingHook', monitor='mAP')], 'coco/bbox_mAP'),
        (
            SEG,
            'param_scheduler',
            [dict(type='ReduceOnPlateauLR', monitor='IoU', rule='greater')],
            'mIoU',
        ),
    ],
)
def test_a_figure_that_the_evaluation_does_not_give(config, key, value, gives):
    [said] = said_of(config, {key: value})
    assert 'which the evaluation does not give' in said and gives in said


@pytest.mark.parametrize(
    'config, options',
    [
        (DET, {'default_hooks.checkpoint.save_best': 'coco/bbox_mAP_75'}),
        (DET, {'default_hooks.checkpoint.save_best': 'auto'}),
        (SEG, {'default_hooks.checkpoint.save_best': ['mIoU', 'aAcc']}),
        (
            SEG,
            {'default_hooks.checkpoint.save_best': 'mDice', 'val_evaluator.iou_metrics': ['mDice']},
        ),
        (DET, {'default_hooks.checkpoint.save_best': 'my/bbox_mAP', 'val_evaluator.prefix': 'my'}),
        (
            DET,
            {
                'default_hooks.checkpoint.save_best': 'coco/a_precision',
                'val_evaluator.classwise': True,
            },
        ),
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
    assert said_of(config, options) == []


def test_settings_in_settings():
    inner = dict(type='CocoDataset', anfile='x', pipeline=[dict(type='Resize', scales=(9, 9))])
    said = said_of(
        DET,
        {
            'train_dataloader.dataset': dict(
                _delete_=True, type='RepeatDataset', times=2, dataset=inner
            )
        },
    )
    assert [text.split(': ')[1] for text in said] == [
        'train_dataloader.dataset.dataset.anfile',
        'train_dataloader.dataset.dataset.pipeline[0].scales',
    ]


def test_a_strategy_that_no_runner_reads():
    [said] = said_of(DET, {'strategy': dict(type='ShardedStrategy')})
    assert 'strategy: is read by runner_type="FlexibleRunner" only' in said
