# For a small data set of your own, from scratch, on a CPU: give it with --data DIR.
_base_ = 'fpn_cyclemlp_b1_256x256_600i_small.py'
model = dict(
    backbone=dict(type='DenseRepMLPNet', arch='b', img_size=128),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
