# UperNet over an MPViT backbone. Each config gives the size by backbone.arch; the widths here are
# those of S.
_base_ = 'upernet_cyclemlp.py'
model = dict(
    backbone=dict(
        type='MPViT', drop_path_rate=0.2, norm_cfg=dict(type='SyncBNOrBN', requires_grad=True)
    ),
    decode_head=dict(in_channels=[128, 216, 288, 288]),
    auxiliary_head=dict(in_channels=288),
)
