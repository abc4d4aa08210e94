_base_ = [
    '_base_/models/retinanet_mpvit.py',
    '_base_/datasets/coco_detection_mpvit.py',
    '_base_/schedules/coco_1x_mpvit.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://dl.dropbox.com/s/1cmquqyjmaeeg1n/mpvit_tiny.pth'
model = dict(
    backbone=dict(
        arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    neck=dict(in_channels=[176, 216, 216]),
)
