_base_ = [
    '_base_/models/upernet_mpvit.py',
    '_base_/datasets/ade20k_512x512.py',
    '_base_/runtime/mmseg.py',
    '_base_/schedules/ade20k_160k_mpvit.py',
]
checkpoint = 'https://dl.dropbox.com/s/y3dnmmy8h4npz7a/mpvit_small.pth'
model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    )
)
train_dataloader = dict(batch_size=2)  # x 8 GPUs
