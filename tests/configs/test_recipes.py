"""Resolved configs against published recipes, field by field, typed from the sources.

Sources: PVT, which CycleMLP's authors follow, MPViT (repository: detectron2/configs, GET_STARTED,
semantic_segmentation/configs), Swin-Transformer-Object-Detection and -Semantic-Segmentation
(configs/swin), mmseg's PoolFormer configs, DingXiaoH/RepMLP (README, config.py, randaug.py), and
the CycleMLP paper (arXiv 2107.10224) with its published main.py.
"""

import copy

import pytest
from paths import ROOT

from cyclemlp_mm.engine import load_config

RGB = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}
_PRE = 'model.data_preprocessor.'
_TRAIN, _TEST = 'train_dataloader.dataset.', 'test_dataloader.dataset.'
_ADAMW = {'optim_wrapper.optimizer.type': 'AdamW'}


def steps(schedule, decays, factor, warm_up):
    """A step schedule after a linear warm-up."""
    return {
        'train_cfg.max_epochs': schedule,
        'param_scheduler.0.type': 'LinearLR',
        'param_scheduler.0.start_factor': factor,
        'param_scheduler.0.end': warm_up,
        'param_scheduler.0.by_epoch': False,
        'param_scheduler.1.type': 'MultiStepLR',
        'param_scheduler.1.milestones': decays,
        'param_scheduler.1.gamma': 0.1,
        'auto_scale_lr.base_batch_size': 16,
        'train_dataloader.batch_size': 2,
    }


def adamw(rate, decay, paramwise=None, clip=None):
    """AdamW, and what else the optimiser's wrapper does."""
    return _ADAMW | {
        'optim_wrapper.optimizer.lr': rate,
        'optim_wrapper.optimizer.weight_decay': decay,
        'optim_wrapper.paramwise_cfg': paramwise,
        'optim_wrapper.clip_grad': clip,
    }


NO_NORM_DECAY = dict(norm_decay_mult=0.0)
COCO = {
    _PRE + 'mean': RGB['mean'],
    _PRE + 'std': RGB['std'],
    _PRE + 'bgr_to_rgb': True,
    _PRE + 'pad_size_divisor': 32,
    _TEST + 'pipeline.1.scale': (1333, 800),
    _TEST + 'pipeline.1.keep_ratio': True,
    'model.neck.out_channels': 256,
    'model.neck.num_outs': 5,
}
ONE_SCALE = {
    _TRAIN + 'pipeline.2.type': 'Resize',
    _TRAIN + 'pipeline.2.scale': (1333, 800),
    _TRAIN + 'pipeline.3.type': 'RandomFlip',
    _TRAIN + 'pipeline.3.prob': 0.5,
}
FILTERED = {_TRAIN + 'filter_cfg.filter_empty_gt': True}
RETINANET = COCO | {
    'model.type': 'RetinaNet',
    'model.backbone.out_indices': (1, 2, 3),
    'model.neck.add_extra_convs': 'on_input',
    'model.bbox_head.stacked_convs': 4,
    'model.bbox_head.loss_cls.gamma': 2.0,
    'model.bbox_head.loss_cls.alpha': 0.25,
    'model.bbox_head.loss_bbox.type': 'L1Loss',
    'model.test_cfg.nms.iou_threshold': 0.5,
    'model.test_cfg.max_per_img': 100,
}
MASK_RCNN = COCO | {
    'model.type': 'MaskRCNN',
    'model.backbone.out_indices': (0, 1, 2, 3),
    'model.roi_head.bbox_head.type': 'Shared2FCBBoxHead',
    'model.roi_head.bbox_head.loss_bbox.type': 'L1Loss',
    'model.roi_head.mask_head.num_convs': 4,
    'model.train_cfg.rpn_proposal.max_per_img': 1000,
    'model.train_cfg.rcnn.sampler.num': 512,
}
#: Shorter sides of Swin's multi-scale training, in pixels.
SCALES = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
_CHOICE = _TRAIN + 'pipeline.3.transforms.'
MULTI_SCALE = {
    _TRAIN + 'pipeline.2.type': 'RandomFlip',
    _TRAIN + 'pipeline.2.prob': 0.5,
    _TRAIN + 'pipeline.3.type': 'RandomChoice',
    _TRAIN + 'pipeline.3.prob': None,
    _CHOICE + '0.0.scales': [(short, 1333) for short in SCALES],
    _CHOICE + '0.0.keep_ratio': True,
    _CHOICE + '1.0.scales': [(400, 1333), (500, 1333), (600, 1333)],
    _CHOICE + '1.1.type': 'RandomCrop',
    _CHOICE + '1.1.crop_type': 'absolute_range',
    _CHOICE + '1.1.crop_size': (384, 600),
    _CHOICE + '1.1.allow_negative_crop': True,
    _CHOICE + '1.2.scales': [(short, 1333) for short in SCALES],
    _CHOICE + '1.2.keep_ratio': True,
}
SWIN_3X = steps(36, [27, 33], 0.001, 500) | adamw(1e-4, 0.05, NO_NORM_DECAY) | MULTI_SCALE
_STAGES = [
    ([0.1, 0.1, 0.2, 0.2], 0.5),
    ([0.05, 0.05, 0.1, 0.1], 0.6),
    ([0.033, 0.033, 0.067, 0.067], 0.7),
]
CASCADE = COCO | {
    'model.type': 'CascadeRCNN',
    'model.roi_head.type': 'CascadeRoIHead',
    'model.roi_head.num_stages': 3,
    'model.roi_head.stage_loss_weights': [1, 0.5, 0.25],
    'model.rpn_head.loss_bbox.type': 'SmoothL1Loss',
    'model.rpn_head.loss_bbox.beta': 1 / 9,
    'model.train_cfg.rpn.allowed_border': 0,
    'model.train_cfg.rpn_proposal.nms_pre': 2000,
    'model.train_cfg.rpn_proposal.max_per_img': 2000,
    'model.test_cfg.rpn.max_per_img': 1000,
    'model.test_cfg.rcnn.score_thr': 0.05,
    'model.test_cfg.rcnn.nms.iou_threshold': 0.5,
    **{
        f'model.roi_head.bbox_head.{i}.{key}': value
        for i, (stds, _) in enumerate(_STAGES)
        for key, value in {
            'type': 'ConvFCBBoxHead',
            'num_shared_convs': 4,
            'num_shared_fcs': 1,
            'reg_class_agnostic': False,
            'reg_decoded_bbox': True,
            'norm_cfg.type': 'SyncBNOrBN',
            'loss_bbox.type': 'GIoULoss',
            'loss_bbox.loss_weight': 10.0,
            'bbox_coder.target_stds': stds,
        }.items()
    },
    **{
        f'model.train_cfg.rcnn.{i}.{key}': value
        for i, (_, threshold) in enumerate(_STAGES)
        for key, value in {
            'assigner.pos_iou_thr': threshold,
            'assigner.neg_iou_thr': threshold,
            'assigner.min_pos_iou': threshold,
            'assigner.match_low_quality': False,
            'sampler.num': 512,
            'sampler.pos_fraction': 0.25,
            'mask_size': 28,
        }.items()
    },
}
ADE20K = {
    _TRAIN + 'pipeline.2.scale': (2048, 512),
    _TRAIN + 'pipeline.2.ratio_range': (0.5, 2.0),
    _TRAIN + 'pipeline.3.crop_size': (512, 512),
    _TRAIN + 'pipeline.3.cat_max_ratio': 0.75,
    _TRAIN + 'pipeline.4.prob': 0.5,
    _TRAIN + 'pipeline.5.type': 'PhotoMetricDistortion',
    _TEST + 'pipeline.1.scale': (2048, 512),
    _TEST + 'pipeline.1.keep_ratio': True,
    'model.test_cfg.mode': 'whole',
    'model.decode_head.num_classes': 150,
    'model.decode_head.dropout_ratio': 0.1,
    # Multi-scale and flip.
    'tta_pipeline.1.transforms.0.*.scale': [
        *((2048, 512), (1024, 256), (1536, 384), (2560, 640), (3072, 768), (3584, 896))
    ],
}
SEMANTIC_FPN = (
    ADE20K
    | adamw(2e-4, 1e-4)
    | {
        'model.neck.out_channels': 256,
        'model.decode_head.type': 'FPNHead',
        'model.decode_head.channels': 128,
        'train_cfg.max_iters': 40000,
        'param_scheduler.0.type': 'PolyLR',
        'param_scheduler.0.power': 0.9,
        'param_scheduler.0.eta_min': 0.0,
        'auto_scale_lr.base_batch_size': 32,
        'train_dataloader.batch_size': 4,
        _TEST + 'pipeline.2.type': 'ResizeToMultiple',
        _TEST + 'pipeline.2.size_divisor': 32,
        'tta_pipeline.1.transforms.1.0.type': 'ResizeToMultiple',
        'tta_pipeline.1.transforms.1.0.size_divisor': 32,
        'tta_pipeline.1.transforms.2.*.prob': [0.0, 1.0],
    }
)
UPERNET = ADE20K | {
    'model.decode_head.type': 'UPerHead',
    'model.decode_head.channels': 512,
    'model.decode_head.pool_scales': (1, 2, 3, 6),
    'model.auxiliary_head.in_index': 2,
    'model.auxiliary_head.channels': 256,
    'model.auxiliary_head.loss_decode.loss_weight': 0.4,
    'train_cfg.max_iters': 160000,
    'param_scheduler.0.type': 'LinearLR',
    'param_scheduler.0.start_factor': 1e-6,
    'param_scheduler.0.end': 1500,
    'param_scheduler.1.type': 'PolyLR',
    'param_scheduler.1.power': 1.0,
    'param_scheduler.1.eta_min': 0.0,
    'auto_scale_lr.base_batch_size': 16,
    'train_dataloader.batch_size': 2,
    'tta_pipeline.1.transforms.1.*.prob': [0.0, 1.0],
}
IMAGENET = {
    _PRE + 'mean': RGB['mean'],
    _PRE + 'std': RGB['std'],
    _PRE + 'to_rgb': True,
    'model.head.loss.label_smooth_val': 0.1,
    'model.train_cfg.augments.*.type': ['Mixup', 'CutMix'],
    _TRAIN + 'pipeline.1.type': 'RandomResizedCrop',
    _TRAIN + 'pipeline.2.prob': 0.5,
}
NO_DECAY = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
DEIT = (
    IMAGENET
    | adamw(1e-3, 0.05, NO_DECAY)
    | {
        'model.train_cfg.augments.*.alpha': [0.8, 1.0],
        'train_cfg.max_epochs': 300,
        'param_scheduler.0.start_factor': 1e-3,  # of 1e-3: from 1e-6
        'param_scheduler.0.end': 5,
        'param_scheduler.1.type': 'CosineAnnealingLR',
        'param_scheduler.1.eta_min': 1e-5,
        'param_scheduler.1.end': 300,
        'auto_scale_lr.base_batch_size': 1024,
        'train_dataloader.batch_size': 128,
        'train_dataloader.sampler.type': 'RepeatAugSampler',
        'custom_hooks.0.type': 'EMAHook',
        'custom_hooks.0.momentum': 4e-5,  # 1 - 0.99996
        _TRAIN + 'pipeline.1.interpolation': 'bicubic',
        _TRAIN + 'pipeline.3.policies': 'timm_increasing',
        _TRAIN + 'pipeline.3.num_policies': 2,
        _TRAIN + 'pipeline.3.magnitude_level': 9,
        _TRAIN + 'pipeline.3.magnitude_std': 0.5,
        _TRAIN + 'pipeline.4.type': 'RandomErasing',
        _TRAIN + 'pipeline.4.erase_prob': 0.25,
        _TEST + 'pipeline.1.interpolation': 'bicubic',
        _TEST + 'pipeline.2.crop_size': 224,
    }
)
REPMLP = (
    IMAGENET
    | adamw(1e-3, 0.1, NO_DECAY, dict(max_norm=5.0))
    | {
        'model.backbone.reparam_conv_kernels': (1, 3),
        'model.train_cfg.augments.*.alpha': [0.4, 1.0],
        'train_cfg.max_epochs': 100,
        'param_scheduler.0.start_factor': 5e-4,  # of 1e-3: from 5e-7
        'param_scheduler.0.end': 10,
        'param_scheduler.1.type': 'CosineAnnealingLR',
        'param_scheduler.1.eta_min': 0.0,
        'param_scheduler.1.end': 100,
        'auto_scale_lr.base_batch_size': 256,
        'train_dataloader.batch_size': 32,
        'train_dataloader.sampler.type': 'DefaultSampler',
        'custom_hooks': None,  # no average of the weights
        _TRAIN + 'pipeline.*.type': [
            *('LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'RandAugment', 'PackInputs')
        ],
        _TRAIN + 'pipeline.3.num_policies': 2,
        _TRAIN + 'pipeline.3.magnitude_level': 14,  # the largest of numpy's choice(15)
        _TRAIN + 'pipeline.3.magnitude_std': 'inf',
        _TRAIN + 'pipeline.3.policies.*.type': [
            *('AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize'),
            *('SolarizeAdd', 'ColorTransform', 'Contrast', 'Brightness', 'Sharpness'),
            *('Shear', 'Shear', 'Translate', 'Translate', 'Cutout'),
        ],
        _TRAIN + 'pipeline.3.policies.*.magnitude_range': [
            *(None, None, None, (0, 30), (0, 4), (0, 256), (0, 110)),
            *((-0.9, 0.9), (-0.9, 0.9), (-0.9, 0.9), (-0.9, 0.9)),
            *((0, 0.3), (0, 0.3), (0, 0.45), (0, 0.45), (0, 40)),
        ],
        _TRAIN + 'pipeline.3.policies.*.prob': [1.0] * 16,
    }
)
_MPVIT = steps(12, [8, 11], 0.01, 1000) | adamw(1e-4, 0.05, clip=dict(max_norm=1.0)) | ONE_SCALE
_MPVIT |= {_TRAIN + 'filter_cfg.filter_empty_gt': False}
#: PVT's, which CycleMLP's authors follow, with the learning rates of its two detectors.
_PVT = steps(12, [8, 11], 0.001, 500) | ONE_SCALE | FILTERED
_DROP = 'model.backbone.drop_path_rate'
_EDGE = _TEST + 'pipeline.1.scale'

#: By the names of configs, '{}' standing for an arch: the recipe, and what differs between archs.
RECIPES = {
    'retinanet_cyclemlp_{}_fpn_1x_coco': (
        RETINANET | _PVT | adamw(1e-4, 1e-4),
        {arch: {_DROP: None} for arch in ('b1', 'b2', 'b3', 'b4', 'b5')},
    ),
    'mask_rcnn_cyclemlp_{}_fpn_1x_coco': (
        MASK_RCNN | _PVT | adamw(2e-4, 1e-4),
        {arch: {_DROP: None} for arch in ('b1', 'b2', 'b3', 'b4', 'b5', 't', 's', 'b')},
    ),
    'mask_rcnn_cyclemlp_{}_fpn_ms-3x_coco': (
        MASK_RCNN | SWIN_3X,
        {a: {_DROP: rate} for a, rate in (('b2', 0.2), ('t', 0.2), ('s', 0.2), ('b', 0.3))},
    ),
    'cascade_mask_rcnn_cyclemlp_{}_fpn_ms-3x_coco': (
        CASCADE | SWIN_3X,
        {a: {_DROP: rate} for a, rate in (('b2', 0.2), ('t', 0.2), ('s', 0.2), ('b', 0.3))},
    ),
    'fpn_cyclemlp_{}_512x512_40k_ade20k': (
        SEMANTIC_FPN,
        {arch: {_DROP: None} for arch in ('b1', 'b2', 'b3', 'b4', 'b5')},
    ),
    'upernet_cyclemlp_{}_512x512_160k_ade20k': (
        UPERNET | adamw(6e-5, 0.01, NO_NORM_DECAY),
        {arch: {_DROP: 0.3} for arch in ('b1', 'b2', 'b3', 'b4', 'b5', 't', 's', 'b')},
    ),
    'cyclemlp_{}_in1k': (
        DEIT | {_DROP: 0.1},
        {
            a: {_EDGE: 248 if a in ('b1', 'b2', 'b3') else 256}
            for a in ('b1', 'b2', 'b3', 'b4', 'b5', 't', 's', 'b')
        },
    ),
    'retinanet_mpvit_{}_fpn_1x_coco': (
        RETINANET | _MPVIT,
        {'tiny': {_DROP: 0.1}, 'xsmall': {_DROP: 0.1}, 'small': {_DROP: 0.2}, 'base': {_DROP: 0.4}},
    ),
    'mask_rcnn_mpvit_{}_fpn_1x_coco': (
        MASK_RCNN | _MPVIT,
        {'tiny': {_DROP: 0.1}, 'xsmall': {_DROP: 0.1}, 'small': {_DROP: 0.2}, 'base': {_DROP: 0.4}},
    ),
    'upernet_mpvit_{}_512x512_160k_ade20k': (
        UPERNET | adamw(6e-5, 0.01),
        {'small': {_DROP: 0.2}, 'base': {_DROP: 0.4}},
    ),
    'mpvit_{}_in1k': (
        DEIT,
        {
            'tiny': {_DROP: 0.0},
            'xsmall': {_DROP: 0.0},
            'small': {_DROP: 0.05},
            'base': {_DROP: 0.3},
        },
    ),
    'repmlp_{}_in1k': (
        REPMLP,
        {
            'b': {
                'model.backbone.img_size': None,
                _TRAIN + 'pipeline.1.scale': 224,
                _EDGE: (256, 256),
                _TEST + 'pipeline.2.crop_size': 224,
            },
            'b_256px': {
                'model.backbone.img_size': 256,
                _TRAIN + 'pipeline.1.scale': 256,
                _EDGE: 292,
                _TEST + 'pipeline.2.crop_size': 256,
            },
        },
    ),
}
CASES = {
    name.format(arch): recipe | own
    for name, (recipe, sizes) in RECIPES.items()
    for arch, own in sizes.items()
}


def value_at(node, keys):
    """What a config has at dotted keys, None where it has nothing; '*' lists all items."""
    for i, key in enumerate(keys):
        if key == '*':
            return [value_at(item, keys[i + 1 :]) for item in node]
        if isinstance(node, (list, tuple)):
            node = node[int(key)]
        else:
            node = node.get(key)
        if node is None:
            return None
    return node


def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


def differences(cfg, published):
    """Fields of a config that are not the published ones: name, found and published value."""
    found = {key: value_at(cfg, key.split('.')) for key in published}
    return [
        (key, found[key], published[key])
        for key in published
        if plain(found[key]) != plain(published[key])
    ]


@pytest.mark.parametrize('name', CASES)
def test_every_field_is_the_published_one(name):
    assert differences(load_config(name), CASES[name]) == []


@pytest.mark.parametrize(
    ('name', 'key', 'value'),
    [
        ('retinanet_mpvit_tiny_fpn_1x_coco', 'optim_wrapper.clip_grad.max_norm', 5.0),
        ('fpn_cyclemlp_b2_512x512_40k_ade20k', _TEST + 'pipeline.2.size_divisor', 16),
        ('repmlp_b_in1k', 'model.backbone.reparam_conv_kernels', (3,)),
        ('cascade_mask_rcnn_cyclemlp_t_fpn_ms-3x_coco', 'train_cfg.max_epochs', 12),
    ],
)
def test_a_changed_value_is_noticed(name, key, value):
    cfg = copy.deepcopy(load_config(name))
    cfg.merge_from_dict({key: value})
    found = [field for field, *_ in differences(cfg, CASES[name])]
    assert found and all(key.startswith(field) for field in found)


def test_every_published_recipe_is_compared():
    """All configs but those for small data, demos, distillation, sharding and RepMLP's own."""
    from paths import ROOT

    names = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    others = {n for n in names if n.endswith(('_small', '_demo', '_distill', '_fsdp'))}
    others |= {n for n in names if 'distill' in n or ('repmlp' in n and not n.endswith('in1k'))}
    assert names - others == set(CASES)


def test_the_classifier_for_small_folders_begins_with_published_weights():
    cfg, of_imagenet = load_config('cyclemlp_b1_50e_small'), load_config('cyclemlp_b1_in1k')
    detector = load_config('retinanet_cyclemlp_b1_fpn_1x_coco').model.backbone.init_cfg
    assert cfg.load_from == detector.checkpoint
    assert cfg.model == of_imagenet.model and cfg.custom_hooks == []
    pipelines = [c.train_dataloader.dataset.pipeline for c in (cfg, of_imagenet)]
    assert pipelines[0] == pipelines[1]
    assert cfg.train_dataloader.sampler == dict(type='DefaultSampler', shuffle=True)
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 32
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == cfg.param_scheduler[-1].T_max


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['mask_rcnn', 'cascade_mask_rcnn'])
def test_3x_trains_on_own_data(kind, tmp_path, monkeypatch):
    """With the multi-scale pipeline, --data and B1: an epoch, and a test."""
    from toy_runs import NO_WORKERS

    from cyclemlp_mm.apis.test import test as evaluate
    from cyclemlp_mm.apis.train import train
    from cyclemlp_mm.datasets import shapes

    data = shapes.write_coco(tmp_path / 'shapes', 2, 2, (96, 64))
    monkeypatch.chdir(tmp_path)
    name = f'{kind}_cyclemlp_b2_fpn_ms-3x_coco'
    options = ['train_cfg.max_epochs=1', 'model.backbone.init_cfg=None', *NO_WORKERS]
    options += ['model.backbone.arch=b1', 'train_dataloader.batch_size=1']
    options += [f'{s}_dataloader.dataset.pipeline.1.scale=(256,160)' for s in ('val', 'test')]
    options += ['model.test_cfg.rpn.max_per_img=20', 'model.train_cfg.rpn_proposal.max_per_img=50']
    places = ['rcnn.0', 'rcnn.1', 'rcnn.2'] if 'cascade' in kind else ['rcnn']
    options += [f'model.train_cfg.{place}.sampler.num=16' for place in places]
    train([name, '--data', str(data), '--work-dir', 'wd', '--cfg-options', *options])
    metrics = evaluate([f'wd/{name}.py', 'wd/epoch_1.pth'])
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(metrics)


def test_images_become_rgb_with_imagenets_mean():
    """Images are loaded as BGR, and the published weights were trained on RGB."""
    for path in sorted((ROOT / 'configs').glob('*.py')):
        cfg = load_config(path.stem)
        settings = cfg.get('data_preprocessor') or cfg.model.data_preprocessor
        turned = settings.get('bgr_to_rgb'), settings.get('to_rgb')
        assert True in turned and settings.mean == [123.675, 116.28, 103.53], path.name
