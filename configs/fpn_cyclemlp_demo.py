# What `make demo` trains for segmentation: a small Semantic FPN-CycleMLP, from scratch, on a CPU.
_base_ = [
    '_base_/models/fpn_cyclemlp.py',
    '_base_/datasets/ade20k_512x512.py',
    '_base_/runtime/mmseg.py',
]
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        arch=dict(
            depths=(1, 1, 3, 1),
            widths=(32, 64, 128, 192),
            mlp_ratios=(4, 4, 4, 4),
            reweight=True,
            downsample='conv',
        )
    ),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=32, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[32] * 4, channels=32, num_classes=5, norm_cfg=norm_cfg),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=[0.3, 0.3], direction=['horizontal', 'vertical']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=1, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
epoch, max_epochs = 85, 5  # iterations, of the 340 images that `make demo` generates
max_iters = epoch * max_epochs
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=epoch)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', begin=0, end=max_iters, T_max=max_iters, by_epoch=False),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=10.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=4)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=epoch))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True)
    for scale in [(128, 128), (96, 96), (160, 160)]
]
