# The demo's classifier, half as deep, taught by another one:
# tools/train.py cyclemlp_demo_distill --data my_shapes \
#     --cfg-options model.teacher_checkpoint=work_dirs/cyclemlp_demo/epoch_20.pth
_base_ = 'cyclemlp_demo.py'
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
    teacher={{_base_.model}},
    teacher_checkpoint='work_dirs/cyclemlp_demo/epoch_20.pth',
    distillation='soft',
    alpha=0.5,
    tau=1.0,
    backbone=dict(arch=dict(depths=(1, 1, 1, 1))),
)
