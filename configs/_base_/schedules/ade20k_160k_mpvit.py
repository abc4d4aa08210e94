# The UperNet recipe of MPViT: Swin's, but all weights decay, those of norms as well.
# Source: the MPViT repository, semantic_segmentation/configs.
_base_ = 'ade20k_160k.py'
optim_wrapper = dict(paramwise_cfg=None)
