_base_ = [
    '_base_/models/mask_rcnn_cyclemlp.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_1x.py',
    '_base_/runtime/mmdet.py',
]
checkpoint = 'https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_B3.pth'
model = dict(backbone=dict(arch='b3', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
