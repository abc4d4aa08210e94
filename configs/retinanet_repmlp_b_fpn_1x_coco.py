# The recipe is CycleMLP's: RepMLP's authors published none on this data.
_base_ = [
    '_base_/models/retinanet_repmlp.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_1x.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = (
    'https://download.openmmlab.com/mmclassification/v0/repmlp/'
    'repmlp-base_3rdparty_8xb64_in1k_20220330-1cb1f11b.pth'
)
model = dict(backbone=dict(arch='b', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
