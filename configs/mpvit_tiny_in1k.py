# DeiT's recipe, as CycleMLP's; drop path is MPViT's own (its repository, GET_STARTED: T 0, XS 0,
# S 0.05, B 0.3). The crop ratio is not in the sources that this was written from.
_base_ = [
    '_base_/models/mpvit_classifier.py',
    '_base_/datasets/imagenet_224_crop875.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='tiny', drop_path_rate=0.0), head=dict(in_channels=216))
