# CycleMLP-T/S/B are a reconstruction: their code, and so their crop ratio, was never published.
# 0.875 is that of Swin's own evaluation, whose widths and patch merging they share.
_base_ = [
    '_base_/models/cyclemlp_classifier.py',
    '_base_/datasets/imagenet_224_crop875.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='s'), head=dict(in_channels=768))
