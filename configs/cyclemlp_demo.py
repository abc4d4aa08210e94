# A small classifier that learns from scratch within a minute or so on a CPU:
# tools/make_demo_data.py folders my_shapes && tools/train.py cyclemlp_demo --data my_shapes
_base_ = [
    '_base_/models/cyclemlp_classifier.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/runtime/mmpretrain.py',
]
model = dict(
    data_preprocessor=dict(num_classes=4),
    backbone=dict(
        arch=dict(
            depths=(1, 1, 2, 1),
            widths=(24, 48, 96, 128),
            mlp_ratios=(3, 3, 3, 3),
            reweight=True,
            downsample='conv',
        ),
        drop_path_rate=0.0,
    ),
    head=dict(num_classes=4, in_channels=128, topk=(1,)),
    train_cfg=None,
)  # a mixed image of small shapes on noise teaches little in a minute
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=100, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
max_epochs = 20
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=32)
default_hooks = dict(logger=dict(interval=10))
