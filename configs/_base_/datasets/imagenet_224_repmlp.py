# ImageNet-1k at 224x224 as RepMLPNet is trained on it: a random crop, flip, and two operations of
# RandAugment; no erasing, no repeated augmentation. Source: DingXiaoH/RepMLP, data/build.py and
# randaug.py (the preset raug15). Images are evaluated as mmpretrain evaluates its weights of
# RepMLPNet (configs/repmlp).
_base_ = 'imagenet_224.py'
# Ranges are those of levels 0 to 10. All operations are always applied.
policies = [
    dict(type='AutoContrast', prob=1.0),
    dict(type='Equalize', prob=1.0),
    dict(type='Invert', prob=1.0),
    dict(type='Rotate', magnitude_range=(0, 30), prob=1.0),
    dict(type='Posterize', magnitude_range=(0, 4), prob=1.0),
    dict(type='Solarize', magnitude_range=(0, 256), prob=1.0),
    dict(type='SolarizeAdd', magnitude_range=(0, 110), prob=1.0),
    *(
        # Factors from 0.1 to 1.9: what is given here is added to 1.
        dict(type=kind, magnitude_range=(-0.9, 0.9), prob=1.0, random_negative_prob=0.0)
        for kind in ('ColorTransform', 'Contrast', 'Brightness', 'Sharpness')
    ),
    *(
        dict(type=kind, magnitude_range=(0, most), direction=direction, prob=1.0)
        for kind, most in (('Shear', 0.3), ('Translate', 0.45))
        for direction in ('horizontal', 'vertical')
    ),
    dict(type='Cutout', magnitude_range=(0, 40), pad_val=(113, 122, 125), prob=1.0),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies=policies,
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
    dict(type='Resize', scale=(256, 256), backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,  # x 8 GPUs
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
