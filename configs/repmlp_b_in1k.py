# RepMLPNet-B from the weights of mmpretrain's zoo, which evaluate as they are:
# tools/test.py repmlp_b_in1k.py repmlp-base_3rdparty_8xb64_in1k_20220330-1cb1f11b.pth
# Images are evaluated as there: 256x256, whatever their shape, and the centre. The training recipe is
# CycleMLP's.
_base_ = [
    '_base_/models/repmlp_classifier.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='b'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 256), backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
