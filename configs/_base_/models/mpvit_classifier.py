# MPViT as an ImageNet classifier: global mean of the last level, Linear. Each config gives the size
# by backbone.arch; the head's width here is that of S.
# The published files load as they are: tools/test.py CONFIG mpvit_small.pth.
_base_ = 'cyclemlp_classifier.py'
model = dict(backbone=dict(type='MPViT'), head=dict(in_channels=288))
