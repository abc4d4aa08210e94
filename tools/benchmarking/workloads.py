"""What is timed, ready to run: a backbone on images, or a whole config on a made-up batch."""

from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.models import CycleMLP, MPViT, to_deploy

from .published_form import published_form

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
Size = tuple[int, int, int]  # batch, height, width
#: Backbones of ours by name: CycleMLP's archs, and MPViT's with a prefix.
MPVIT = 'mpvit_'
ARCHS = (*CycleMLP.arch_zoo, *(MPVIT + arch for arch in MPViT.arch_zoo))
#: Ours as it is, and by ``torch.compile``.
OWN_FORMS = ('ours', 'compiled')
#: torchvision's backbones to compare with, and how to cut the classifier off.
RIVALS = dict(
    resnet50=lambda models: list(models.resnet50().children())[:-2],
    swin_t=lambda models: [models.swin_t().features],
    convnext_t=lambda models: [models.convnext_tiny().features],
)


class Workload(NamedTuple):
    """A model on its device, a forward pass that returns the loss in training, and (B, 3, H, W)."""

    model: nn.Module
    forward: Callable[[], object]
    image_shape: tuple[int, ...]

    def call(self, train: bool) -> Callable[[], object]:
        """One inference, or one training step without the optimiser."""

        def step() -> None:
            self.model.zero_grad(set_to_none=True)
            self.forward().backward()

        return step if train else torch.inference_mode()(self.forward)


def contender(name: str, arch: str, backend: str = 'auto', deploy: bool = False) -> nn.Module:
    """Build a backbone, randomly initialised.

    Args:
        name (str): 'ours', 'compiled' (ours by ``torch.compile``), 'published' (CycleMLP on
            ``deform_conv2d``), 'published_compiled', 'reference' (plain shift + Linear) or one of
            :data:`RIVALS`.
        arch (str): One of :data:`ARCHS`, unless for a rival; MPViT has only the first two forms.
        backend (str): Mixer backend of CycleMLP's 'ours'. Defaults to 'auto'.
        deploy (bool): Whether 'ours' is folded. Defaults to False.
    """
    if name in RIVALS:
        from torchvision import models

        return nn.Sequential(*RIVALS[name](models))
    torch.manual_seed(0)
    if arch.startswith(MPVIT):
        model = MPViT(arch.removeprefix(MPVIT))
    else:
        model = CycleMLP(arch, mixer_backend=backend)
    if name not in OWN_FORMS:
        model = published_form(model, name.removesuffix('_compiled'))
    elif deploy:
        model = to_deploy(model)
    return torch.compile(model) if name.endswith('compiled') else model


def backbone_workload(name: str, arch: str, dtype: str, size: Size, args: Namespace) -> Workload:
    """A backbone on random images; its loss is the mean square of its maps.

    ``dtype`` is a key of :data:`DTYPES`, or 'amp': autocast to bfloat16.
    """
    train, device = args.mode == 'train', args.device
    model = contender(name, arch, args.backend, args.deploy).to(device).train(train)
    image = torch.randn(size[0], 3, *size[1:], device=device)
    if dtype != 'amp':
        model, image = model.to(DTYPES[dtype]), image.to(DTYPES[dtype])
    if name in RIVALS:
        # The layout that convolutions are fastest in.
        model = model.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)

    def forward() -> Tensor | tuple[Tensor]:
        with _autocast(dtype, device):
            levels = model(image)
        levels = [levels] if name in RIVALS else levels
        return sum(level.float().square().mean() for level in levels) if train else levels

    return Workload(model, forward, tuple(image.shape))


def config_workload(name: str, config: str, dtype: str, size: Size, args: Namespace) -> Workload:
    """A config's whole model, randomly initialised, on random images with made-up labels.

    Inference is what ``tools/test.py`` does with a loaded image, post-processing included; it finds
    nothing in noise. Training is the loss of the model's own heads. ``name`` is 'ours', or a form
    of :func:`~benchmarking.published_form.published_form`.
    """
    cfg, train, device = load_config(config), args.mode == 'train', args.device
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    MMLogger.get_current_instance().setLevel('WARNING')  # it prints three lines for each tensor
    model.init_weights()
    if name != 'ours':
        model = published_form(model, name)
    elif args.deploy:
        to_deploy(model)
    model = model.to(device).train(train)
    batch = made_up_batch(cfg, size)

    def forward() -> object:
        with _autocast(dtype, device):
            data = model.data_preprocessor(batch, training=train)
            outputs = model(**data, mode='loss' if train else 'predict')
        return model.parse_losses(outputs)[0] if train else outputs

    return Workload(model, forward, (size[0], 3, *size[1:]))


def _autocast(dtype: str, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if dtype == 'amp' else nullcontext()


def made_up_batch(cfg: dict, size: Size) -> dict:
    """Images as a data loader gives them, and a sample for each, with 8 objects to detect."""
    images, height, width = size
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        shapes = [(3, height, width)] * images
        batch = demo_mm_inputs(images, shapes, [8] * images, num_classes=2, with_mask=True)
        for sample in batch['data_samples']:
            sample.gt_instances.labels.zero_()  # a class that every detector has
        return batch
    random = torch.Generator().manual_seed(0)
    sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (height, width))
    inputs = torch.randint(256, (images, 3, height, width), generator=random, dtype=torch.uint8)
    if cfg.default_scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        classes = cfg.model.decode_head.num_classes
        labels = torch.randint(classes, (images, 1, height, width), generator=random)
        maps = [PixelData(data=label) for label in labels]
        samples = [SegDataSample(gt_sem_seg=data, metainfo=sizes) for data in maps]
    else:
        from mmpretrain.structures import DataSample

        samples = [DataSample(metainfo=sizes).set_gt_label(0) for _ in range(images)]
    return dict(inputs=list(inputs), data_samples=samples)
