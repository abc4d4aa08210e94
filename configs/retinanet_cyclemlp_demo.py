# What `make demo` trains: a small RetinaNet-CycleMLP on generated shapes, from scratch, on a CPU.
_base_ = [
    '_base_/models/retinanet_cyclemlp.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/demo_6e.py',
    '_base_/runtime/mmdet.py',
]
# GN in neck and heads: from scratch, within minutes, it makes the difference.
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    backbone=dict(
        arch=dict(
            depths=(1, 1, 3, 1),
            widths=(32, 64, 128, 192),
            mlp_ratios=(4, 4, 4, 4),
            reweight=True,
            downsample='conv',
        )
    ),
    neck=dict(in_channels=[64, 128, 192], out_channels=96, num_outs=3, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=4,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=16, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=25))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True)
    for scale in [(128, 128), (96, 96), (160, 160)]
]
