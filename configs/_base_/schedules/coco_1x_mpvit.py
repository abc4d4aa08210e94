# MPViT's COCO 1x. Published as 90k iterations of 16 images, x0.1 after 60k and 80k: 12 epochs here,
# x0.1 after 8 and 11; the gradient's whole norm is clipped at 1.0.
# Source: the MPViT repository, detectron2/configs.
_base_ = 'coco_1x.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(weight_decay=0.05), clip_grad=dict(max_norm=1.0))
