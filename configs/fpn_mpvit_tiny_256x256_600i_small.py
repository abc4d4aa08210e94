# For a small data set of your own, from scratch, on a CPU: give it with --data DIR.
_base_ = 'fpn_cyclemlp_b1_256x256_600i_small.py'
model = dict(backbone=dict(type='MPViT', arch='tiny'), neck=dict(in_channels=[96, 176, 216, 216]))
