_base_ = [
    '_base_/models/retinanet_mpvit.py',
    '_base_/datasets/coco_detection_mpvit.py',
    '_base_/schedules/coco_1x_mpvit.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://dl.dropbox.com/s/y3dnmmy8h4npz7a/mpvit_small.pth'
model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    )
)
