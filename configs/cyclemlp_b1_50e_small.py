# For a small folder of your own images, from the published ImageNet weights: give it with --data DIR.
_base_ = 'cyclemlp_b1_in1k.py'
load_from = 'https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_B1.pth'
train_dataloader = dict(
    batch_size=32, num_workers=2, sampler=dict(type='DefaultSampler', shuffle=True)
)
val_dataloader = dict(batch_size=32, num_workers=2)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=50,
        eta_min=1e-6,
        by_epoch=True,
        begin=0,
        end=50,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(optimizer=dict(lr=1e-4))
custom_hooks = []  # few iterations: an average over 25000 of them would keep the first weights
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(logger=dict(interval=10))
