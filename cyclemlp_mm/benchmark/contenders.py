"""What is timed: backbones that turn images into feature maps."""

import torch
from torch import nn

from cyclemlp_mm.models import CycleMLP

from .published_form import plain_form

#: torchvision's backbones to compare with.
RIVALS = ('resnet50', 'swin_t', 'convnext_t')


class _Trunk(nn.Module):
    """A torchvision classifier up to its last feature map."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, image: torch.Tensor) -> 'tuple[torch.Tensor]':
        return (self.parts(image),)


def rival(name: str) -> nn.Module:
    """A backbone of torchvision without its classifier, randomly initialised.

    Args:
        name (str): 'resnet50', 'swin_t' or 'convnext_t'.

    Raises:
        ValueError: Another name.
    """
    from torchvision import models

    if name == 'resnet50':
        return _Trunk(*list(models.resnet50().children())[:-2])
    if name == 'swin_t':
        return _Trunk(models.swin_t().features)
    if name == 'convnext_t':
        return _Trunk(models.convnext_tiny().features)
    raise ValueError(f'rival must be one of {RIVALS}, but got {name!r}')


def contender(name: str, arch: str, backend: str = 'auto') -> nn.Module:
    """A backbone by name.

    Args:
        name (str): 'ours', 'published' (CycleMLP on ``deform_conv2d``), 'reference' (plain shift +
            Linear) or one of :data:`RIVALS`.
        arch (str): CycleMLP's arch, for the first three.
        backend (str): Mixer backend of 'ours'. Defaults to 'auto'.
    """
    if name in RIVALS:
        return rival(name)
    torch.manual_seed(0)
    model = CycleMLP(arch, mixer_backend=backend)
    return model if name == 'ours' else plain_form(model, name)
