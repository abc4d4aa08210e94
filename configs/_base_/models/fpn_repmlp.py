# Semantic FPN over a RepMLPNet backbone, with mmpretrain's weights for 224x224.
_base_ = 'fpn_cyclemlp.py'
model = dict(
    backbone=dict(
        type='DenseRepMLPNet',
        reparam_conv_kernels=(1, 3),
        norm_cfg=dict(type='SyncBNOrBN', requires_grad=True),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
