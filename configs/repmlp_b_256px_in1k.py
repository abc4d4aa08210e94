# RepMLPNet-B at 256x256, from the weights of mmpretrain's zoo, which evaluate as they are:
# tools/test.py repmlp_b_256px_in1k.py repmlp-base_3rdparty_8xb64_in1k-256px_20220330-7c5a91ce.pth
_base_ = [
    '_base_/models/repmlp_classifier.py',
    '_base_/datasets/imagenet_256_repmlp.py',
    '_base_/schedules/imagenet_100e_repmlp.py',
    '_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='b', img_size=256))
