# RepMLPNet as an ImageNet classifier: norm on the last level (the backbone's own), global mean, Linear.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    # 'RepMLPNet' is mmpretrain's own here. The published weights have kernels of 1 and 3.
    backbone=dict(type='DenseRepMLPNet', out_indices=(3,), reparam_conv_kernels=(1, 3)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        # The weights begin as all other Linears do; mmpretrain's default is 0.01.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
    # One of the two per batch. Source: DingXiaoH/RepMLP, README.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.4), dict(type='CutMix', alpha=1.0)]),
)
