_base_ = [
    '_base_/models/mask_rcnn_mpvit.py',
    '_base_/datasets/coco_instance_mpvit.py',
    '_base_/schedules/coco_1x_mpvit.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://dl.dropbox.com/s/la8w31m0apj2830/mpvit_base.pth'
model = dict(
    backbone=dict(
        arch='base', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    neck=dict(in_channels=[224, 368, 480, 480]),
)
