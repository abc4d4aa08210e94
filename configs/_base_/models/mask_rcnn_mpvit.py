# Mask R-CNN over an MPViT backbone. Each config gives the size by backbone.arch; the widths here
# are those of S.
_base_ = 'mask_rcnn_cyclemlp.py'
model = dict(
    backbone=dict(type='MPViT', norm_cfg=dict(type='SyncBNOrBN', requires_grad=True)),
    neck=dict(in_channels=[128, 216, 288, 288]),
)
