"""Published CycleMLP names to ours and back: pure renamings.

| published | ours |
|---|---|
| ``patch_embed.proj`` | ``stem.proj`` |
| ``network.{2i}.{j}.attn`` | ``stages.{i}.{j}.mixer`` |
| ``network.{2i-1}`` | ``downsamples.{i}`` |
| ``norm`` (classifier) | ``norm3``: it norms the same map |
| ``norm{2i}`` (dense) | ``norm{i}`` |
| ``….sfc_h.weight`` (C, C, 1, 1) | (C, C) |
| ``….offset`` | a constant: compared, then dropped |

Paddle ports use the published names, with each Linear weight transposed, (in, out).

Source of the names: github.com/ShoufaChen/CycleMLP (MIT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.ops import cycle_offsets

from .limits import shorten
from .published import PublishedFormat

#: Kernels of the two shifted branches, by their published names.
KERNEL_SIZES = {'sfc_h': (1, 3), 'sfc_w': (3, 1)}
_LAST_LEVEL = 3
_CONVOLUTION = re.compile(r'patch_embed\.proj|network\.\d*[13579]\.proj')


def is_published(names: Mapping[str, Tensor]) -> bool:
    """Whether a state dict uses the published names."""
    return any(name.startswith(('network.', 'patch_embed.')) for name in names)


def is_certainly_published(names: Mapping[str, Tensor]) -> bool:
    """Whether it is a published CycleMLP and no relative: PVT and others share the first names."""
    return any(re.fullmatch(r'network\.\d+\.\d+\.attn\.sfc_h\.weight', name) for name in names)


def is_ours(names: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of our backbone, without a prefix."""
    return any(re.fullmatch(r'stages\.\d+\.\d+\.mixer\.sfc_h\.weight', name) for name in names)


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


def to_ours(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`, with the constant ``offset`` buffers, in published order.

    The last norm gets the classifier's name where there is a classifier, else the dense one.

    Args:
        ours (Mapping[str, Tensor]): A backbone under our names, and ``head.weight``, ``head.bias``
            where it has a classifier.

    Raises:
        CheckpointError: A name that is not ours.
    """
    classifier = 'head.weight' in ours
    published = {}
    for name, tensor in ours.items():
        new = rename_back(name, classifier)
        if new is None:
            raise CheckpointError(f'{shorten(name)} is no name of a CycleMLP of ours')
        owner, _, leaf = new.rpartition('.')
        kernel_size = KERNEL_SIZES.get(owner.rpartition('.')[2])
        if kernel_size and leaf == 'weight':
            tensor = tensor[:, :, None, None]
        published[new] = tensor
        if kernel_size and leaf == 'bias':
            offset = cycle_offsets(len(tensor), kernel_size).float()
            published[f'{owner}.offset'] = offset.reshape(1, -1, 1, 1)
    return {name: published[name] for name in sorted(published, key=_published_order)}


def rename_back(name: str, classifier: bool) -> str | None:
    """The published name for one of ours; None if it is not ours."""
    if match := re.fullmatch(r'stages\.(\d+)\.(\d+\..+)', name):
        rest = match[2].replace('.mixer.', '.attn.')
        return f'network.{2 * int(match[1])}.{rest}'
    if match := re.fullmatch(r'downsamples\.([1-9]\d*)\.(.+)', name):
        return f'network.{2 * int(match[1]) - 1}.{match[2]}'
    if match := re.fullmatch(r'norm(\d)\.(.+)', name):
        level = int(match[1])
        last = classifier and level == _LAST_LEVEL
        return f'norm.{match[2]}' if last else f'norm{2 * level}.{match[2]}'
    if match := re.fullmatch(r'stem\.(.+)', name):
        return f'patch_embed.{match[1]}'
    return name if re.fullmatch(r'head\.(weight|bias)', name) else None


def is_linear(name: str) -> bool:
    """Whether a published name is the weight of a Linear: by the module it belongs to.

    Not by shape: ``attn.proj`` and ``attn.mlp_c`` are square, and a CycleFC weight is as square.
    """
    owner, _, leaf = name.rpartition('.')
    module = owner.rpartition('.')[2]
    return leaf == 'weight' and not (
        module in KERNEL_SIZES or module.startswith('norm') or _CONVOLUTION.fullmatch(owner)
    )


def from_paddle(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict of a Paddle port's: each Linear weight (in, out) to (out, in).

    A weight that should be Linear and is no matrix stays, for the shape check to name.
    """
    return {
        name: tensor.t() if is_linear(name) and tensor.dim() == 2 else tensor
        for name, tensor in state_dict.items()
    }


def arch_of(state_dict: Mapping[str, Tensor]) -> dict[str, object] | None:
    """The ``arch`` dict of a state dict under our names, with the stages that it has.

    Stages behind the last returned level are not built, so these may be the first one to four.

    Returns:
        dict | None: A value per stage there is; ``downsample`` is None for a single one. None where
        there is no stage, one is missing in between, or a tensor of one.
    """
    depths, widths, ratios = [0] * 4, [0] * 4, [0] * 4
    for name, tensor in state_dict.items():
        match = re.fullmatch(r'stages\.([0-3])\.(\d{1,3})\.(norm1|mlp\.fc1)\.weight', name)
        if match is None:
            continue
        stage = int(match[1])
        depths[stage] = max(depths[stage], int(match[2]) + 1)
        if match[3] == 'norm1':
            widths[stage] = tensor.shape[0]
        elif tensor.dim() == 2:
            ratios[stage] = tensor.shape[0] // max(tensor.shape[1], 1)
    built = sum(depth > 0 for depth in depths)
    if not built or not all(depths[:built] + widths[:built] + ratios[:built]):
        return None
    downsample = 'conv' if 'downsamples.1.proj.weight' in state_dict else 'patch_merging'
    return dict(
        depths=tuple(depths[:built]),
        widths=tuple(widths[:built]),
        mlp_ratios=tuple(ratios[:built]),
        reweight=any('.mixer.reweight.' in name for name in state_dict),
        downsample=downsample if built > 1 else None,
    )


def describe(state_dict: Mapping[str, Tensor]) -> str:
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


def _published_order(name: str) -> tuple[int, int]:
    parts = name.split('.')
    groups = ('patch_embed', 'network', 'norm', 'head')
    group = next(i for i, g in enumerate(groups) if parts[0].startswith(g))
    return group, int(parts[1]) if parts[0] == 'network' else 0


def _check_offset(name: str, offset: Tensor, kernel_size: tuple[int, int]) -> None:
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
    from_paddle=from_paddle,
    extras={'classifier': r'head\.(fc\.)?(weight|bias)'},
    is_certain=is_certainly_published,
    is_ours=is_ours,
)
