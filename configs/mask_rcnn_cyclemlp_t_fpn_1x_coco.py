# CycleMLP-T/S/B are a reconstruction: their code was never published.
_base_ = [
    '_base_/models/mask_rcnn_cyclemlp.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_1x.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_tiny.pth'
model = dict(
    backbone=dict(arch='t', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
