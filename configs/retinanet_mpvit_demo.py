# MPViT-T on generated shapes, from scratch, on a CPU:
# tools/make_demo_data.py coco my_shapes && tools/train.py retinanet_mpvit_demo --data my_shapes
_base_ = 'retinanet_cyclemlp_demo.py'
model = dict(backbone=dict(type='MPViT', arch='tiny'), neck=dict(in_channels=[176, 216, 216]))
