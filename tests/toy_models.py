"""Models with random weights as a training would leave them: a config beside a checkpoint."""

import torch
from mmengine.registry import MODELS, init_default_scope

from cyclemlp_mm.datasets.shapes import CLASSES, PALETTE
from cyclemlp_mm.engine import load_config, require_toolbox

ARCH = dict(
    depths=(1, 1, 1, 1),
    widths=(8, 16, 24, 32),
    mlp_ratios=(1, 1, 1, 1),
    reweight=True,
    downsample='conv',
)


def save_detector(folder, masks=False):
    """A RetinaNet, or a Mask R-CNN; returns the paths of config and checkpoint."""
    if masks:
        cfg = load_config('mask_rcnn_cyclemlp_b1_fpn_6e_small')
        cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 4
        cfg.model.test_cfg.rcnn.max_per_img = 8
        cfg.model.test_cfg.rpn.max_per_img = 50
        cfg.model.neck.in_channels = list(ARCH['widths'])
    else:
        cfg = load_config('retinanet_cyclemlp_demo')
        cfg.model.neck.in_channels = list(ARCH['widths'][1:])
        cfg.model.test_cfg.max_per_img = 12
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo = dict(classes=CLASSES, palette=PALETTE)
    return _save(cfg, folder, dict(classes=CLASSES, palette=PALETTE))


def save_segmentor(folder, classes=('sky', 'road', 'tree'), channels=3, load=None, **data):
    """A Semantic FPN; returns the paths of config and checkpoint.

    ``load`` is the loading step of images, ``data`` are settings of the data sets to test.
    """
    cfg = load_config('fpn_cyclemlp_b1_256x256_600i_small')
    if load is not None:
        cfg.model.backbone.in_channels = channels
        norm = dict(mean=[110.0], std=[58.0]) if channels == 1 else dict(mean=None, std=None)
        cfg.model.data_preprocessor.update(bgr_to_rgb=False, **norm)
        for loader in (cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.pipeline = [
                load,
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ]
            loader.dataset.update(data)
    cfg.model.neck.in_channels = list(ARCH['widths'])
    cfg.model.decode_head.num_classes = len(classes)
    palette = [(230, 159, 0), (86, 180, 233), (0, 158, 115)]
    return _save(cfg, folder, dict(classes=classes, palette=palette))


def save_classifier(folder, classes=('cat', 'dog', 'cow')):
    """A classifier for generated shapes; returns the paths of config and checkpoint."""
    cfg = load_config('cyclemlp_demo')
    cfg.model.head.num_classes = len(classes)
    cfg.model.head.in_channels = ARCH['widths'][-1]
    return _save(cfg, folder, dict(classes=classes))


def _save(cfg, folder, meta):
    folder.mkdir(parents=True, exist_ok=True)
    cfg.model.backbone.arch = ARCH
    cfg.model.backbone.init_cfg = None
    init_default_scope(require_toolbox(cfg))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        # Else every score is about 0.01, and nothing is found.
        if name.endswith(('retina_cls.bias', 'fc_cls.bias', 'conv_seg.weight')):
            torch.nn.init.normal_(parameter)
    config, checkpoint = folder / 'toy.py', folder / 'epoch_1.pth'
    cfg.dump(config)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=meta)), checkpoint)
    return config, checkpoint
