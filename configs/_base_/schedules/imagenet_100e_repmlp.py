# RepMLPNet's ImageNet recipe: 100 epochs at a total batch of 256 (8 GPUs x 32 images), AdamW 1e-3,
# weight decay 0.1 (none on norms and biases), 10 warm-up epochs from 5e-7, cosine to 0, gradients
# clipped at 5. Source: DingXiaoH/RepMLP, README ("Train from scratch") and config.py.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(  # 1e-3 x 5e-4 = 5e-7
        type='LinearLR',
        start_factor=5e-4,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=90,
        eta_min=0.0,
        by_epoch=True,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=256)
