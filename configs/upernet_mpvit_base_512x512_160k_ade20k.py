_base_ = [
    '_base_/models/upernet_mpvit.py',
    '_base_/datasets/ade20k_512x512.py',
    '_base_/runtime/mmseg.py',
    '_base_/schedules/ade20k_160k_mpvit.py',
]
checkpoint = 'https://dl.dropbox.com/s/la8w31m0apj2830/mpvit_base.pth'
model = dict(
    backbone=dict(
        arch='base', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    decode_head=dict(in_channels=[224, 368, 480, 480]),
    auxiliary_head=dict(in_channels=480),
)
train_dataloader = dict(batch_size=2)  # x 8 GPUs
