# ADE20K UperNet, the Swin recipe: 160k iterations at a total batch of 16 (8 GPUs x 2 images),
# linear warm-up, poly 1.0, no weight decay on norms.
# Source: Swin-Transformer-Semantic-Segmentation, configs/swin (warmup_ratio 1e-6).
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    # The factor of the learning rate, not the rate itself, is 1e-6.
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=160000, by_epoch=False),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
