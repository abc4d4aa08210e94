"""What is timed: backbones that turn images into feature maps."""

from __future__ import annotations

import torch
from torch import nn

from cyclemlp_mm.models import CycleMLP, MPViT, to_deploy

from .published_form import plain_form

#: Backbones of ours by name: CycleMLP's archs, and MPViT's behind a prefix.
MPVIT = 'mpvit_'
ARCHS = (*CycleMLP.arch_zoo, *(MPVIT + arch for arch in MPViT.arch_zoo))
#: Ours as it is, and by ``torch.compile``.
OWN_FORMS = ('ours', 'compiled')
#: torchvision's backbones to compare with.
RIVALS = ('resnet50', 'swin_t', 'convnext_t')


class _Trunk(nn.Module):
    """A torchvision classifier up to its last feature map."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
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


def contender(name: str, arch: str, backend: str = 'auto', deploy: bool = False) -> nn.Module:
    """A backbone by name.

    Args:
        name (str): 'ours', 'compiled' (ours by ``torch.compile``), 'published' (CycleMLP on
            ``deform_conv2d``), 'reference' (plain shift + Linear) or one of :data:`RIVALS`.
        arch (str): One of :data:`ARCHS`, for the first four; MPViT has only the first two.
        backend (str): Mixer backend of CycleMLP's 'ours'. Defaults to 'auto'.
        deploy (bool): Whether 'ours' is folded. Defaults to False.

    Raises:
        ValueError: MPViT in another form than ours.
    """
    if name in RIVALS:
        return rival(name)
    torch.manual_seed(0)
    if arch.startswith(MPVIT):
        if name not in OWN_FORMS:
            raise ValueError(f'{name} is a form of CycleMLP, not of {arch}')
        model = MPViT(arch.removeprefix(MPVIT))
    else:
        model = CycleMLP(arch, mixer_backend=backend)
    if name not in OWN_FORMS:
        return plain_form(model, name)
    model = to_deploy(model) if deploy else model
    return torch.compile(model) if name == 'compiled' else model
