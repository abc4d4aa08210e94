# CycleMLP-T/S/B are a reconstruction: their code was never published.
_base_ = [
    '_base_/models/upernet_cyclemlp.py',
    '_base_/datasets/ade20k_512x512.py',
    '_base_/runtime/mmseg.py',
    '_base_/schedules/ade20k_160k.py',
]
checkpoint = 'https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_base.pth'
model = dict(
    backbone=dict(arch='b', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
train_dataloader = dict(batch_size=2)  # x 8 GPUs
