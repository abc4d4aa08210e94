# ImageNet-1k at 256x256 as RepMLPNet is trained on it, see imagenet_224_repmlp.py.
_base_ = 'imagenet_224_repmlp.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=256, backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies={{_base_.policies}},
        num_policies=2,
        total_level=10,
        magnitude_level=14,
        magnitude_std='inf',  # drawn evenly from 0 to magnitude_level
        hparams=dict(pad_val=[128, 128, 128], interpolation='bilinear'),
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=292, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
