"""What is timed, ready to run: a backbone on images, or a whole config on a made-up batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.models import to_deploy

from .contenders import RIVALS, contender
from .published_form import plain_form

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
#: Objects per image of a made-up batch.
OBJECTS = 8


class Workload(NamedTuple):
    """A model and a forward pass of it.

    Attributes:
        model (nn.Module): On its device, in its dtype and mode.
        forward (Callable): Runs it; in training, returns the loss.
        image_shape (tuple[int, ...]): Of its input, (B, 3, H, W).
    """

    model: nn.Module
    forward: Callable[[], object]
    image_shape: tuple[int, ...]

    def call(self, train: bool) -> Callable[[], object]:
        """One inference, or one training step without the optimiser."""

        def infer() -> None:
            with torch.inference_mode():
                self.forward()

        def step() -> None:
            self.model.zero_grad(set_to_none=True)
            self.forward().backward()

        return step if train else infer


def backbone_workload(
    name: str,
    arch: str,
    dtype: str,
    size: tuple[int, int, int],
    train: bool,
    device: torch.device,
    backend: str = 'auto',
    deploy: bool = False,
) -> Workload:
    """A backbone that turns random images into maps; its loss is their mean square.

    Args:
        name, arch, backend, deploy: See :func:`~benchmarking.contenders.contender`.
        dtype (str): A key of :data:`DTYPES`, or 'amp': autocast to bfloat16.
        size (tuple[int, int, int]): Batch, height, width.
        train (bool): Whether to train.
        device (torch.device): Where.
    """
    model = contender(name, arch, backend, deploy).to(device).train(train)
    image = torch.randn(size[0], 3, *size[1:], device=device)
    if dtype != 'amp':
        model, image = model.to(DTYPES[dtype]), image.to(DTYPES[dtype])
    if name in RIVALS:
        # The layout that convolutions are fastest in.
        model = model.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)

    def forward() -> Tensor | Sequence[Tensor]:
        with _autocast(dtype, device):
            levels = model(image)
        return sum(level.float().square().mean() for level in levels) if train else levels

    return Workload(model, forward, tuple(image.shape))


def config_workload(
    name: str,
    config: str,
    dtype: str,
    size: tuple[int, int, int],
    train: bool,
    device: torch.device,
    deploy: bool = False,
) -> Workload:
    """A config's whole model, randomly initialised, on random images with made-up labels.

    Inference is what ``tools/test.py`` does with a loaded image, post-processing included; it finds
    nothing in noise. Training is the loss of the model's own heads.

    Args:
        name (str): 'ours', or 'published' or 'reference': see
            :func:`~benchmarking.published_form.plain_form`.
        config (str): A config file, or the name of a shipped one.
        dtype (str): 'float32', or 'amp': autocast to bfloat16.
        size (tuple[int, int, int]): Batch, height, width.
        train (bool): Whether to train.
        device (torch.device): Where.
        deploy (bool): Whether 'ours' is folded. Defaults to False.
    """
    cfg = load_config(config)
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if name != 'ours':
        model = plain_form(model, name)
    elif deploy:
        to_deploy(model)
    model = model.to(device).train(train)
    batch = _batch(cfg, size)

    def forward() -> object:
        with _autocast(dtype, device):
            data = model.data_preprocessor(batch, training=train)
            outputs = model(**data, mode='loss' if train else 'predict')
        return model.parse_losses(outputs)[0] if train else outputs

    return Workload(model, forward, (size[0], 3, *size[1:]))


def _autocast(dtype: str, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if dtype == 'amp' else nullcontext()


def _batch(cfg: dict, size: tuple[int, int, int]) -> dict:
    """Images as a data loader gives them, and a sample for each."""
    images, height, width = size
    random = np.random.default_rng(0)
    make = dict(mmdet=_detection, mmseg=_segmentation, mmpretrain=_classification)
    return dict(
        inputs=[
            torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))
            for _ in range(images)
        ],
        data_samples=[make[cfg.default_scope](random, cfg, height, width) for _ in range(images)],
    )


def _meta(height: int, width: int) -> dict:
    return dict(
        img_shape=(height, width),
        ori_shape=(height, width),
        pad_shape=(height, width),
        batch_input_shape=(height, width),
        scale_factor=(1.0, 1.0),
        img_id=0,
        img_path='',
    )


def _detection(random: np.random.Generator, cfg: dict, height: int, width: int) -> object:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    sides = random.uniform(0.1, 0.5, (OBJECTS, 2)) * (width, height)
    corners = random.uniform(0, 1, (OBJECTS, 2)) * ((width, height) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    masks = np.zeros((OBJECTS, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(metainfo=_meta(height, width))
    sample.gt_instances = InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.zeros(OBJECTS, dtype=torch.long),
        masks=BitmapMasks(masks, height, width),
    )
    return sample


def _segmentation(random: np.random.Generator, cfg: dict, height: int, width: int) -> object:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = random.integers(0, cfg.model.decode_head.num_classes, (1, height, width))
    sample = SegDataSample(metainfo=_meta(height, width))
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels))
    return sample


def _classification(random: np.random.Generator, cfg: dict, height: int, width: int) -> object:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_meta(height, width)).set_gt_label(0)
