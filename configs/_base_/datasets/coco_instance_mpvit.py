# COCO 2017 as MPViT trains on it: images without objects are kept.
# Source: the MPViT repository, detectron2/configs (FILTER_EMPTY_ANNOTATIONS: False).
_base_ = 'coco_instance.py'
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))
