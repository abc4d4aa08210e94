# RepMLPNet-B with partitions for 128x128 on generated shapes, from scratch, on a CPU:
# tools/make_demo_data.py coco my_shapes && tools/train.py retinanet_repmlp_demo --data my_shapes
_base_ = 'retinanet_cyclemlp_demo.py'
model = dict(
    backbone=dict(type='DenseRepMLPNet', arch='b', img_size=128),
    neck=dict(in_channels=[192, 384, 768]),
)
