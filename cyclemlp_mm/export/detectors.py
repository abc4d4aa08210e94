"""Whole detectors as a graph: RetinaNet and Mask R-CNN, from an image to mmdet's own objects.

mmdet selects boxes by code that branches on the data. :class:`DetectorGraph` takes the same steps
without a branch, so what is recorded of it holds for every image, also for one without objects.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError

_CODER = ('DeltaXYWHBBoxCoder', dict(clip_border=True, add_ctr_clamp=False))
_EXTRACTOR = ('SingleRoIExtractor', {})
_ROI_ALIGN = ('RoIAlign', dict(pool_mode='avg', aligned=True))
_DENSE = {'anchor_generator': ('AnchorGenerator', {}), 'bbox_coder': _CODER}
#: By key of the config's ``model``: the class that is reproduced, and the settings that must hold.
SUPPORTED = {
    'RetinaNet': {
        'data_preprocessor': ('DetDataPreprocessor', {}),
        'bbox_head': ('RetinaHead', dict(use_sigmoid_cls=True)),
        **{f'bbox_head.{key}': value for key, value in _DENSE.items()},
    },
    'MaskRCNN': {
        'data_preprocessor': ('DetDataPreprocessor', {}),
        'rpn_head': ('RPNHead', dict(use_sigmoid_cls=True)),
        **{f'rpn_head.{key}': value for key, value in _DENSE.items()},
        'roi_head': ('StandardRoIHead', dict(with_shared_head=False)),
        'roi_head.bbox_head': (
            'Shared2FCBBoxHead',
            dict(with_reg=True, reg_class_agnostic=False, custom_cls_channels=False),
        ),
        'roi_head.bbox_head.bbox_coder': _CODER,
        'roi_head.bbox_roi_extractor': _EXTRACTOR,
        'roi_head.bbox_roi_extractor.roi_layer': _ROI_ALIGN,
        'roi_head.mask_head': ('FCNMaskHead', dict(class_agnostic=False)),
        'roi_head.mask_roi_extractor': _EXTRACTOR,
        'roi_head.mask_roi_extractor.roi_layer': _ROI_ALIGN,
    },
}
#: Attributes of mmdet's modules that have another name than their key in a config.
_ATTRIBUTES = {'anchor_generator': 'prior_generator', 'roi_layer': 'roi_layers.0'}
#: For keys of a test_cfg: whether a value is reproduced, and what to say about others.
_POSITIVE = (lambda value: isinstance(value, int) and value > 0, 'whole numbers above 0')
_NUMBER = (lambda value: isinstance(value, (int, float)) and value >= 0, 'numbers from 0 on')
_NMS = (
    lambda value: (
        isinstance(value, dict)
        and set(value) == {'type', 'iou_threshold'}
        and value['type'] == 'nms'
    ),
    "dict(type='nms', iou_threshold=…)",
)
_NO_SIZE = (
    lambda value: value in (0, -1),
    '0 or -1',
)  # mmdet measures others in pixels before resizing
_RPN_CFG = dict(nms_pre=_POSITIVE, max_per_img=_POSITIVE, nms=_NMS, min_bbox_size=_NO_SIZE)
_RETINA_CFG = dict(_RPN_CFG, score_thr=_NUMBER)
_RCNN_CFG = dict(score_thr=_NUMBER, nms=_NMS, max_per_img=_POSITIVE, mask_thr_binary=_NUMBER)


def check_supported(model: nn.Module) -> None:
    """Raise a UserError that names a key of the config which :class:`DetectorGraph` ignores."""
    kind = type(model).__name__
    if kind not in SUPPORTED:
        fix = 'Take --part neck'
        raise UserError(f'--part model takes {" and ".join(SUPPORTED)}, but not {kind}. {fix}')
    for key, (name, settings) in SUPPORTED[kind].items():
        module = _module(model, key)
        if type(module).__name__ != name or not type(module).__module__.startswith('mm'):
            _reject(f'{key}.type', type(module).__name__, name)
        for setting, value in settings.items():
            if getattr(module, setting) != value:
                _reject(f'{key}.{setting}', getattr(module, setting), value)
    configs = {'test_cfg': (getattr(model, 'bbox_head', None), _RETINA_CFG)}
    if kind == 'MaskRCNN':
        configs = {'test_cfg.rpn': (model.rpn_head, _RPN_CFG)}
        configs['test_cfg.rcnn'] = model.roi_head, _RCNN_CFG
    for place, (head, rules) in configs.items():
        for key in sorted({*head.test_cfg, *rules}):
            value = head.test_cfg.get(key, 0 if key == 'min_bbox_size' else None)
            holds, expected = rules.get(key, (None, 'no such key'))
            if holds is None or value is None or not holds(value):
                _reject(f'{place}.{key}', value, expected)


def _reject(key: str, value: object, expected: object) -> None:
    what = f'--part model: model.{key} is {value!r}, but supported is {expected} only'
    raise UserError(f'{what}. Change it by --cfg-options, or take --part neck')


def _module(model: nn.Module, key: str) -> object:
    names = [_ATTRIBUTES.get(name, name) for name in key.split('.')]
    for name in '.'.join(names).split('.'):
        model = model[int(name)] if name.isdigit() else getattr(model, name, None)
    return model


class DetectorGraph(nn.Module):
    """A RetinaNet or Mask R-CNN that is recorded once, for images of any size.

    It pads like mmdet, clips boxes to the image before padding, and takes every threshold from the
    ``test_cfg``.

    Args:
        model (nn.Module): One that :func:`check_supported` accepts, in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Find the objects of an image.

        Args:
            image (Tensor): float32, (1, C, H, W), normalised, not padded.

        Returns:
            tuple[Tensor, ...]: Boxes, float32 (N, 4), x1, y1, x2, y2 in pixels of the image;
            scores, float32 (N,); labels, int64 (N,); of Mask R-CNN also masks, float32
            (N, 28, 28), the probabilities of each object's own class in its box.
        """
        limit = torch.stack([torch.as_tensor(image.shape[i]) for i in (3, 2, 3, 2)])
        levels = self.model.extract_feat(_pad(self.model, image))
        if not hasattr(self.model, 'roi_head'):
            return _dense_boxes(self.model.bbox_head, levels, limit)
        boxes, _, _ = _dense_boxes(self.model.rpn_head, levels, limit, by_level=True)
        head = self.model.roi_head
        boxes, scores, labels = _refined(head, levels, boxes, limit)
        # One more object, as some layers of onnxruntime take no empty batch.
        filled, more = torch.cat([boxes, torch.zeros_like(limit)[None].to(boxes)]), limit[:1] * 0
        features = _roi_features(head.mask_roi_extractor, levels, filled)
        return boxes, scores, labels, _masks(head, features, torch.cat([labels, more]))[:-1]


def _dense_boxes(
    head: nn.Module, levels: Sequence[Tensor], limit: Tensor, by_level: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of a RetinaHead, or of an RPNHead, whose NMS is by level."""
    cfg, classes = head.test_cfg, head.cls_out_channels
    outputs = head(levels)
    sizes = [scores.shape[-2:] for scores in outputs[0]]
    anchors = head.prior_generator.grid_priors(sizes, device=levels[0].device)
    found = []
    for level, (scores, deltas, priors) in enumerate(zip(*outputs, anchors)):
        scores = scores[0].permute(1, 2, 0).reshape(-1).sigmoid()
        deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        # With the filling, there are always nms_pre of them: the number of topk is a constant.
        filling = scores.new_full((cfg.nms_pre,), -1.0)
        scores, index = torch.cat([scores, filling]).topk(cfg.nms_pre)
        kept = scores > cfg.get('score_thr', -0.5)
        scores, index = scores[kept], index[kept]
        row, label = index // classes, index % classes
        group = torch.full_like(label, level) if by_level else label
        found.append((scores, priors[row], deltas[row], group))
    scores, priors, deltas, group = map(torch.cat, zip(*found))
    boxes = _decode(head.bbox_coder, priors, deltas, limit)
    if cfg.get('min_bbox_size', -1) >= 0:
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        boxes, scores, group = boxes[kept], scores[kept], group[kept]
    return _nms(boxes, scores, group, limit, cfg)


def _decode(coder: object, boxes: Tensor, deltas: Tensor, limit: Tensor) -> Tensor:
    """mmdet's ``delta2bbox`` without its branches: (N, 4) and (N, 4) to (N, 4)."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    size, most = boxes[:, 2:] - boxes[:, :2], abs(math.log(16 / 1000))
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + size * deltas[:, :2]
    half = size * deltas[:, 2:].clamp(-most, most).exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], dim=1)
    return torch.minimum(boxes.clamp(min=0), limit.to(boxes))


def _nms(
    boxes: Tensor, scores: Tensor, group: Tensor, limit: Tensor, cfg: dict
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``max_per_img`` that ``mmcv.ops.batched_nms`` keeps, with their groups."""
    from torchvision.ops import nms  # becomes ONNX's NonMaxSuppression; mmcv's does not

    offset = group.to(boxes) * (limit.max() + 1)  # boxes of two groups do not overlap
    kept = nms(boxes + offset[:, None], scores, cfg.nms.iou_threshold)[: cfg.max_per_img]
    return boxes[kept], scores[kept], group[kept]


def _roi_features(extractor: nn.Module, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """``SingleRoIExtractor.forward``, of standard operators: (N, C, side, side)."""
    from torchvision.ops import roi_align

    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    level_of = extractor.map_roi_levels(rois, extractor.num_inputs)
    features, order = [], []
    for i, layer in enumerate(extractor.roi_layers):
        index = (level_of == i).nonzero()[:, 0]
        where = layer.output_size, layer.spatial_scale, layer.sampling_ratio, True
        features.append(roi_align(levels[i], rois[index], *where))
        order.append(index)
    return torch.cat(features)[torch.cat(order).argsort()]


def _refined(
    head: nn.Module, levels: Sequence[Tensor], rois: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of the second stage, for regions (N, 4)."""
    cfg, classes = head.test_cfg, head.bbox_head.num_classes
    logits, deltas = head.bbox_head(_roi_features(head.bbox_roi_extractor, levels, rois))
    scores = logits.softmax(dim=-1)[:, :-1].reshape(-1)
    index = (scores > cfg.score_thr).nonzero()[:, 0]
    chosen = rois[index // classes], deltas.reshape(-1, 4)[index]
    boxes = _decode(head.bbox_head.bbox_coder, *chosen, limit)
    return _nms(boxes, scores[index], index % classes, limit, cfg)


def _masks(head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """(N, C, 14, 14) and labels (N,) to the probabilities of each object's class (N, 28, 28)."""
    row = torch.arange(labels.shape[0], device=labels.device) * head.mask_head.num_classes
    return head.mask_head(features).flatten(0, 1)[row + labels].sigmoid()


def _pad(model: nn.Module, image: Tensor) -> Tensor:
    """As mmdet's ``DetDataPreprocessor``, after normalising: below and to the right."""
    step = model.data_preprocessor.pad_size_divisor
    bottom, right = ((step - side % step) % step for side in image.shape[2:])
    return F.pad(image, (0, right, 0, bottom), value=float(model.data_preprocessor.pad_value))


def mmdet_objects(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    """What mmdet's own code finds in (1, C, H, W), normalised; see :class:`DetectorGraph`."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import bbox2roi

    sample, padded = DetDataSample(), _pad(model, image)
    size, padded_size = tuple(image.shape[2:]), tuple(padded.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), pad_shape=padded_size)
    sample.set_metainfo(dict(meta, batch_input_shape=padded_size))
    levels = model.extract_feat(padded)
    if not hasattr(model, 'roi_head'):
        [found] = model.bbox_head.predict(levels, [sample], rescale=False)
        return found.bboxes, found.scores, found.labels
    regions = model.rpn_head.predict(levels, [sample], rescale=False)
    head = model.roi_head
    [found] = head.predict_bbox(levels, [sample.metainfo], regions, head.test_cfg, rescale=False)
    extractor = head.mask_roi_extractor
    features = extractor(levels[: extractor.num_inputs], bbox2roi([found.bboxes]))
    return found.bboxes, found.scores, found.labels, _masks(head, features, found.labels)


@contextmanager
def without_threshold(model: nn.Module) -> Iterator[None]:
    """Let a detector keep objects of any score: in random images, others are hardly found."""
    cfg = model.roi_head.test_cfg if hasattr(model, 'roi_head') else model.bbox_head.test_cfg
    score_thr, cfg.score_thr = cfg.score_thr, 0
    try:
        yield
    finally:
        cfg.score_thr = score_thr


def objects_differ(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> float:
    """The largest relative difference of objects from their counterparts.

    Infinite where more than 5% have none within the tolerance: float noise may reverse two nearly
    equal scores, or drop a box whose overlap is nearly the threshold.
    """
    if not len(ours[0]) and not len(theirs[0]):
        return 0.0
    if not len(ours[0]) or not len(theirs[0]):
        return math.inf
    boxes, scores, labels, *masks = zip(ours, theirs, strict=True)
    size = ours[0].abs().max()
    distance = (boxes[0][:, None] - boxes[1]).abs().amax(dim=-1) / size
    distance = distance.maximum((scores[0][:, None] - scores[1]).abs())
    for one, other in masks:
        distance = distance.maximum(torch.cdist(one.flatten(1), other.flatten(1), p=math.inf))
    distance = distance.where(labels[0][:, None] == labels[1], math.inf)
    nearest, partner = distance.min(dim=1)
    matched = partner[nearest <= tolerance].unique().numel()
    enough = matched > 0.95 * max(distance.shape)
    return float(nearest[nearest <= tolerance].max()) if enough else math.inf
