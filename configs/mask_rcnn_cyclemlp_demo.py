# What `make demo` trains for instance masks: a small Mask R-CNN-CycleMLP, from scratch, on a CPU.
_base_ = [
    '_base_/models/mask_rcnn_cyclemlp.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/demo_6e.py',
    '_base_/runtime/mmdet.py',
]
norm_cfg = dict(type='GN', num_groups=8)
regions = dict(
    out_channels=64, featmap_strides=[8, 16, 32], finest_scale=28, roi_layer=dict(sampling_ratio=1)
)
model = dict(
    backbone=dict(
        arch=dict(
            depths=(1, 1, 3, 1),
            widths=(32, 64, 128, 192),
            mlp_ratios=(4, 4, 4, 4),
            reweight=True,
            downsample='conv',
        ),
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[64, 128, 192], out_channels=64, num_outs=3, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=[8, 16, 32])
    ),
    roi_head=dict(
        bbox_roi_extractor=regions,
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=4),
        mask_roi_extractor=regions,
        mask_head=dict(
            num_convs=2, in_channels=64, conv_out_channels=32, num_classes=4, norm_cfg=norm_cfg
        ),
    ),
    # Few regions of an image, and one sample of each bin: they take most of the time on a CPU.
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=100, max_per_img=100),
        rcnn=dict(sampler=dict(num=16)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(max_per_img=20)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=16, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=max_epochs, T_max=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(logger=dict(interval=25))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True)
    for scale in [(128, 128), (96, 96), (160, 160)]
]
