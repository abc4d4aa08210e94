# The weights for 256x256: a crop of 512x512 is 2x2 partitions of them, without padding. The recipe is
# CycleMLP's: RepMLP's authors published none on this data.
_base_ = 'fpn_repmlp_b_512x512_40k_ade20k.py'
checkpoint = (
    'https://download.openmmlab.com/mmclassification/v0/repmlp/'
    'repmlp-base_3rdparty_8xb64_in1k-256px_20220330-7c5a91ce.pth'
)
model = dict(backbone=dict(img_size=256, init_cfg=dict(checkpoint=checkpoint)))
