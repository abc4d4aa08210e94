_base_ = [
    '_base_/models/cyclemlp_classifier.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='b2'))
