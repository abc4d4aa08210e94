_base_ = [
    '_base_/models/retinanet_cyclemlp.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_1x.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_B5.pth'
model = dict(
    backbone=dict(arch='b5', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[192, 384, 768]),
)
