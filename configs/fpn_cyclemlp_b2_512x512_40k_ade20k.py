_base_ = [
    '_base_/models/fpn_cyclemlp.py',
    '_base_/datasets/ade20k_512x512_fpn.py',
    '_base_/runtime/mmseg.py',
    '_base_/schedules/ade20k_40k.py',
]
checkpoint = 'https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_B2.pth'
model = dict(backbone=dict(arch='b2', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
