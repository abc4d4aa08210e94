# RepMLPNet-B from the weights of mmpretrain's zoo, which evaluate as they are:
# tools/test.py repmlp_b_in1k.py repmlp-base_3rdparty_8xb64_in1k_20220330-1cb1f11b.pth
_base_ = [
    '_base_/models/repmlp_classifier.py',
    '_base_/datasets/imagenet_224_repmlp.py',
    '_base_/schedules/imagenet_100e_repmlp.py',
    '_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='b'))
