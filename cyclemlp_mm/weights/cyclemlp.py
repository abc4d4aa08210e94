"""Published CycleMLP names to ours: a pure renaming.

| published | ours |
|---|---|
| ``patch_embed.proj`` | ``stem.proj`` |
| ``network.{2i}.{j}.attn`` | ``stages.{i}.{j}.mixer`` |
| ``network.{2i-1}`` | ``downsamples.{i}`` |
| ``norm`` (classifier) | ``norm3``: it norms the same map |
| ``norm{2i}`` (dense) | ``norm{i}`` |
| ``….sfc_h.weight`` (C, C, 1, 1) | (C, C) |
| ``….offset`` | a constant: compared, then dropped |

Source of the names: github.com/ShoufaChen/CycleMLP (MIT).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.ops import cycle_offsets

from .published import PublishedFormat

#: Kernels of the two shifted branches, by their published names.
KERNEL_SIZES = {'sfc_h': (1, 3), 'sfc_w': (3, 1)}
_LAST_LEVEL = 3


def is_published(names: 'Mapping[str, Tensor]') -> bool:
    """Whether a state dict uses the published names."""
    return any(name.startswith(('network.', 'patch_embed.')) for name in names)


def rename(name: str) -> str:
    """Our name for a published one; names that neither side knows come back unchanged."""
    if match := re.fullmatch(r'network\.(\d+)\.(.+)', name):
        index, rest = int(match[1]), match[2]
        if index % 2:
            return f'downsamples.{(index + 1) // 2}.{rest}'
        return f'stages.{index // 2}.{rest.replace(".attn.", ".mixer.")}'
    if match := re.fullmatch(r'norm(\d*)\.(.+)', name):
        level = int(match[1]) // 2 if match[1] else _LAST_LEVEL
        return f'norm{level}.{match[2]}'
    return re.sub(r'^patch_embed\.', 'stem.', name)


def to_ours(published: 'Mapping[str, Tensor]') -> 'dict[str, Tensor]':
    """Rename a published state dict.

    Raises:
        CheckpointError: An ``offset`` buffer differs from the architecture's constant.
    """
    ours = {}
    for name, tensor in published.items():
        owner, _, leaf = name.rpartition('.')
        kernel_size = KERNEL_SIZES.get(owner.rpartition('.')[2])
        if kernel_size and leaf == 'offset':
            _check_offset(name, tensor, kernel_size)
            continue
        if kernel_size and leaf == 'weight' and tensor.dim() == 4:
            tensor = tensor.flatten(1)
        ours[rename(name)] = tensor
    return ours


def describe(state_dict: 'Mapping[str, Tensor]') -> str:
    """Depths and widths that a state dict under our names holds."""
    depths, widths = {}, {}
    for name, tensor in state_dict.items():
        if match := re.match(r'stages\.(\d+)\.(\d+)\.', name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
            if name.endswith('norm1.weight'):
                widths[stage] = tensor.shape[0]
    if not depths:
        return 'no CycleMLP block'
    listed = '-'.join(str(depths[i]) for i in sorted(depths))
    return f'depths {listed}, widths {"-".join(str(widths[i]) for i in sorted(widths))}'


def _check_offset(name: str, offset: Tensor, kernel_size: 'tuple[int, int]') -> None:
    # deform_conv2d takes offsets as (1, 2C, 1, 1): dy and dx of channel 0, of channel 1, …
    expected = cycle_offsets(offset.numel() // 2, kernel_size).flatten()
    if not torch.equal(offset.flatten().to(expected.dtype), expected):
        raise CheckpointError(
            f'{name} differs from the offsets of a {kernel_size} CycleFC: the file was trained '
            'with another sampling pattern and would give wrong features'
        )


CYCLEMLP_FORMAT = PublishedFormat(
    family='CycleMLP',
    example='patch_embed.proj.weight',
    is_published=is_published,
    to_ours=to_ours,
    describe=describe,
    extras={'classifier': r'head\.(fc\.)?(weight|bias)'},
)
