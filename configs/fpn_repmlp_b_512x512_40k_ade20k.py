# The recipe is CycleMLP's: RepMLP's authors published none on this data.
_base_ = [
    '_base_/models/fpn_repmlp.py',
    '_base_/datasets/ade20k_512x512_fpn.py',
    '_base_/runtime/mmseg.py',
    '_base_/schedules/ade20k_40k.py',
]
checkpoint = (
    'https://download.openmmlab.com/mmclassification/v0/repmlp/'
    'repmlp-base_3rdparty_8xb64_in1k_20220330-1cb1f11b.pth'
)
model = dict(backbone=dict(arch='b', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
