# CycleMLP-T/S/B are a reconstruction: their code was never published.
# The recipe of Swin and its rivals; CycleMLP's authors published none for 3x.
_base_ = [
    '_base_/models/mask_rcnn_cyclemlp.py',
    '_base_/datasets/coco_instance_ms.py',
    '_base_/schedules/coco_3x.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_small.pth'
model = dict(
    backbone=dict(
        arch='s', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
