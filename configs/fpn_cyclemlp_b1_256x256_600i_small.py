# For a small data set of your own, from scratch, on a CPU: give it with --data DIR.
_base_ = [
    '_base_/models/fpn_cyclemlp.py',
    '_base_/datasets/ade20k_512x512.py',
    '_base_/runtime/mmseg.py',
    '_base_/schedules/small_600i.py',
]
crop_size = (256, 256)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch='b1'),
    # Lovász (arXiv 1705.08790) weighs classes by IoU, not by pixels: from scratch, with cross
    # entropy alone, classes that are like a larger one (pavement, road) suffer.
    decode_head=dict(
        loss_decode=[
            dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            dict(
                type='LovaszLoss',
                loss_type='multi_class',
                classes='present',
                per_image=False,
                reduction='none',
                loss_weight=1.0,
            ),
        ]
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)  # the documented figures are of this seed
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale_factor=factor, keep_ratio=True)
    for factor in (1.0, 0.5, 0.75, 1.25, 1.5, 1.75)
]
