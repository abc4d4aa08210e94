"""Which part of a model is exported: one image tensor in, named tensors out."""

import torch.nn.functional as F
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError

from .detectors import DetectorGraph, check_supported, mmdet_objects

PARTS = ('backbone', 'neck', 'model')


class ExportedPart(nn.Module):
    """A part of a detector, segmentor or classifier, as a function of one tensor.

    Args:
        model (nn.Module): A built mmdet, mmseg or mmpretrain model.
        part (str, optional): What comes out: 'backbone', its levels, NCHW; 'neck', those after
            backbone and neck; 'model', a classifier's logits (B, K), a segmentor's (B, K, H, W)
            at the image's size, or a detector's objects (see :class:`.detectors.DetectorGraph`).
            Defaults to 'neck' for detectors and to 'model' for all others. One that the model does
            not have, or that is not supported, is a UserError.

    Attributes:
        output_names (tuple[str]): Names of what :meth:`forward` returns, in order.
        channels (int): Channels of the image.
        min_side (int): Smallest image side that it is exported for.
        is_whole_detector (bool): Whether it takes one image at once and returns objects.
    """

    def __init__(self, model: nn.Module, part: str | None = None) -> None:
        super().__init__()
        is_detector = hasattr(model, 'bbox_head') or hasattr(model, 'rpn_head')
        self.part = part or ('neck' if is_detector else 'model')
        if self.part not in PARTS:
            raise UserError(f'--part must be one of {", ".join(PARTS)}, but got {part!r}')
        self.is_whole_detector = self.part == 'model' and is_detector
        if self.is_whole_detector:
            check_supported(model)
        neck = getattr(model, 'neck', None)
        if self.part == 'neck' and neck is None:
            raise UserError('--part neck: this model has no neck; take --part backbone')
        self.channels = image_channels(model.backbone)
        self.model = model.backbone if self.part == 'backbone' else model
        self.is_segmentor = self.part == 'model' and hasattr(model, 'decode_head')
        levels = len(model.backbone.out_indices)
        if self.part == 'neck':
            levels = getattr(neck, 'num_outs', levels)
        names = ['logits'] if self.part == 'model' else [f'level{i}' for i in range(levels)]
        if self.is_whole_detector:
            names = ['boxes', 'scores', 'labels'] + ['masks'] * hasattr(model, 'roi_head')
        self.output_names = tuple(names)
        # A neck's extra levels reach stride 128, and size-1 dimensions would be specialised.
        self.min_side = {'neck': 160, 'model': 32 if is_detector else 36}.get(self.part, 36)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, channels, H, W), normalised, to the part's outputs."""
        if self.part == 'backbone':
            return tuple(self.model(image))
        if self.part == 'neck':
            return tuple(self.model.extract_feat(image))
        if self.is_whole_detector:
            return mmdet_objects(self.model, image)
        if not self.is_segmentor:
            return (self.model(image, mode='tensor'),)
        head = self.model.decode_head
        logits = head(self.model.extract_feat(image))
        size = image.shape[2:]
        return (F.interpolate(logits, size, mode='bilinear', align_corners=head.align_corners),)

    def to_record(self) -> nn.Module:
        """What an exporter records: itself, or for whole detectors a form without branches."""
        return DetectorGraph(self.model) if self.is_whole_detector else self


def image_channels(backbone: nn.Module) -> int:
    """Channels of the images that a backbone takes: its ``in_channels``, or its first layer's."""
    for module in backbone.modules():
        if type(channels := getattr(module, 'in_channels', None)) is int:
            return channels
    return 3
