# ImageNet-1k, the published recipe: 300 epochs at a total batch of 1024 (8 GPUs x 128 images),
# 5 warm-up epochs from 1e-6, cosine from 1e-3 to 1e-5, EMA of decay 0.99996.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(  # 1e-3 x 1e-3 = 1e-6
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=295,
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
custom_hooks = [
    # mmengine's momentum is 1 - decay. It evaluates, and saves as the model, the average; with
    # update_buffers that of BatchNorm's statistics too, which otherwise were the last weights' own.
    dict(type='EMAHook', momentum=4e-5, update_buffers=True, priority='ABOVE_NORMAL')
]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
