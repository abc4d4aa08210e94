# The recipe of Swin and its rivals; CycleMLP's authors published none for 3x.
_base_ = [
    '_base_/models/mask_rcnn_cyclemlp.py',
    '_base_/datasets/coco_instance_ms.py',
    '_base_/schedules/coco_3x.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_B2.pth'
model = dict(
    backbone=dict(
        arch='b2', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    )
)
