# RegNetX-4GF, the teacher of the Paddle port, from mmpretrain's model zoo. Any mmpretrain classifier
# can take its place: give its config and its checkpoint. It takes BGR images; the student's are
# turned for it.
teacher = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[103.53, 116.28, 123.675],
        std=[57.375, 57.12, 58.395],
        to_rgb=False,
    ),
    backbone=dict(type='RegNet', arch='regnetx_4.0gf'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1360),
)
teacher_checkpoint = (
    'https://download.openmmlab.com/mmclassification/v0/regnet/'
    'regnetx-4.0gf_8xb64_in1k_20211213-efed675c.pth'
)
