# CycleMLP-B1 taught by RegNetX-4GF, as in the Paddle port. The checkpoint holds the student alone:
# evaluate it with this config or with cyclemlp_b1_in1k.py.
_base_ = [
    '_base_/models/cyclemlp_classifier.py',
    '_base_/models/regnetx_4gf_teacher.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/runtime/mmpretrain.py',
]
custom_imports = dict(
    imports=[
        'cyclemlp_mm',
        'cyclemlp_mm.safe_loading',
        'cyclemlp_mm.engine',
        'cyclemlp_mm.classification',
    ],
    allow_failed_imports=False,
)
model = dict(
    type='DistilledClassifier',
    teacher={{_base_.teacher}},
    teacher_checkpoint={{_base_.teacher_checkpoint}},
    distillation='soft',  # or 'hard'
    alpha=0.5,
    tau=1.0,
    backbone=dict(arch='b1'),
)
