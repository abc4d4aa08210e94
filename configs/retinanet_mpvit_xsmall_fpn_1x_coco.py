_base_ = [
    '_base_/models/retinanet_mpvit.py',
    '_base_/datasets/coco_detection_mpvit.py',
    '_base_/schedules/coco_1x_mpvit.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://dl.dropbox.com/s/vvpq2m474g8tvyq/mpvit_xsmall.pth'
model = dict(
    backbone=dict(
        arch='xsmall', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    neck=dict(in_channels=[192, 256, 256]),
)
