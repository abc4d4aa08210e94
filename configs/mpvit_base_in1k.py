# The recipe is CycleMLP's, DeiT's in essence, as is the crop ratio: MPViT's own is not in the sources
# that this was written from.
_base_ = [
    '_base_/models/mpvit_classifier.py',
    '_base_/datasets/imagenet_224_crop875.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='base'), head=dict(in_channels=480))
