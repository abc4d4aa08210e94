"""Published CycleMLP names to ours and back: pure renamings, by ``_BEGINNINGS``.

In blocks, ``attn`` is our ``mixer``; a CycleFC's weight (C, C, 1, 1) is (C, C), and its ``offset``,
a constant, is compared and dropped. A classifier's ``norm`` norms the same map as our ``norm3``.
Paddle ports use the published names, with each Linear weight transposed, (in, out).

Source of the names: github.com/ShoufaChen/CycleMLP (MIT).
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError, shorten
from cyclemlp_mm.ops import cycle_offsets

from .published import PublishedFormat, count_per_stage, has_name, joined, widths_per_stage

#: Kernels of the two shifted branches, by their published names.
KERNEL_SIZES = {'sfc_h': (1, 3), 'sfc_w': (3, 1)}
#: The mixer's branches, by their layers.
BRANCHES = {'sfc_h': 'h', 'sfc_w': 'w', 'mlp_c': 'c'}
_CONVOLUTION = re.compile(r'patch_embed\.proj|network\.\d*[13579]\.proj')
#: Beginnings of the published names, in the order of the files, and of ours.
_BEGINNINGS = {'patch_embed.': 'stem.', 'network.0.': 'stages.0.'}
for _i in (1, 2, 3):
    _BEGINNINGS[f'network.{2 * _i - 1}.'] = f'downsamples.{_i}.'
    _BEGINNINGS[f'network.{2 * _i}.'] = f'stages.{_i}.'
_BEGINNINGS |= {f'norm{2 * _i}.': f'norm{_i}.' for _i in range(4)} | {'norm.': 'norm3.'}
_BEGINNINGS |= {name: name for name in ('head.weight', 'head.bias')}

#: Whether it is a published CycleMLP and no relative: PVT and others share the first names.
is_certainly_published = has_name(r'network\.\d+\.\d+\.attn\.sfc_h\.weight')
#: Whether a state dict is that of our backbone, without a prefix.
is_ours = has_name(r'stages\.\d+\.\d+\.mixer\.(sfc_h|sfc_w|mlp_c)\.weight')


def to_ours(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state dict; names that neither side has stay."""
    ours = {}
    for name, tensor in published.items():
        kernel_size, leaf = _shifted(name)
        if kernel_size and leaf == 'offset':
            # deform_conv2d takes offsets as (1, 2C, 1, 1): dy and dx of channel 0, of channel 1, …
            expected = cycle_offsets(tensor.numel() // 2, kernel_size).flatten()
            if not torch.equal(tensor.flatten().to(expected.dtype), expected):
                raise CheckpointError(
                    f'{name} differs from the offsets of a {kernel_size} CycleFC: the file was '
                    'trained with another sampling pattern'
                )
            continue
        if kernel_size and leaf == 'weight' and tensor.dim() == 4:
            tensor = tensor.flatten(1)
        begin = next((begin for begin in _BEGINNINGS if name.startswith(begin)), None)
        if begin is not None:
            name = _BEGINNINGS[begin] + name.removeprefix(begin).replace('.attn.', '.mixer.')
        ours[name] = tensor
    return ours


def to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`, with the constant ``offset`` buffers, in published order.

    A classifier is ``head.weight`` and ``head.bias``; with one, the last norm is ``norm``. Raises
    CheckpointError for a pseudo-kernel other than 3, or fewer branches, which have no such names.
    """
    if ablated(ours):
        raise CheckpointError(
            'published files have kernel_size 3, branches h-w-c, but these weights have '
            f'{_mixers(ours)}: write them with --to ours or --to safetensors'
        )
    last_norm = 'norm.' if 'head.weight' in ours else 'norm6.'
    beginnings = {new: old for old, new in _BEGINNINGS.items()} | {'norm3.': last_norm}
    groups: dict[str, dict[str, Tensor]] = {old: {} for old in _BEGINNINGS}
    for name, tensor in ours.items():
        begin = next((begin for begin in beginnings if name.startswith(begin)), None)
        if begin is None:
            raise CheckpointError(f'{shorten(name)} is not a tensor name of our CycleMLP')
        group = groups[beginnings[begin]]
        new = beginnings[begin] + name.removeprefix(begin).replace('.mixer.', '.attn.')
        kernel_size, leaf = _shifted(new)
        group[new] = tensor[:, :, None, None] if kernel_size and leaf == 'weight' else tensor
        if kernel_size and leaf == 'bias':
            offset = cycle_offsets(len(tensor), kernel_size).float()
            group[new.removesuffix('bias') + 'offset'] = offset.reshape(1, -1, 1, 1)
    return {name: tensor for group in groups.values() for name, tensor in group.items()}


def _shifted(name: str) -> tuple[tuple[int, int] | None, str]:
    """The kernel size of the CycleFC that a tensor belongs to, if any, and its name there."""
    *_, owner, leaf = ('', *name.split('.'))
    return KERNEL_SIZES.get(owner), leaf


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
    """The published state dict of a Paddle port's: each Linear weight (in, out) to (out, in)."""
    return {
        name: tensor.t() if is_linear(name) and tensor.dim() == 2 else tensor
        for name, tensor in state_dict.items()
    }


def arch_of(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The ``arch`` dict of a state dict under our names, with the first stages, which it has.

    ``downsample`` is None for a single one; ``kernel_size`` and ``branches`` are there if they are
    not the usual ones. None where a stage or a tensor of one is missing.
    """
    depths = count_per_stage(state_dict, r'stages\.([0-3])\.(\d{1,3})\.norm1\.weight')
    widths = widths_per_stage(state_dict, r'stages\.([0-3])\.\d+\.norm1\.weight')
    hidden = widths_per_stage(state_dict, r'stages\.([0-3])\.\d+\.mlp\.fc1\.weight')
    built = range(len(depths))
    if not depths or not list(depths) == list(hidden) == list(built):
        return None
    downsample = 'conv' if 'downsamples.1.proj.weight' in state_dict else 'patch_merging'
    return dict(
        depths=tuple(depths.values()),
        widths=tuple(widths.values()),
        mlp_ratios=tuple(hidden[i] // max(widths[i], 1) for i in built),
        reweight=any('.mixer.reweight.' in name for name in state_dict),
        downsample=downsample if len(built) > 1 else None,
        **ablated(state_dict),
    )


def kernels_and_branches(state_dict: Mapping[str, Tensor]) -> tuple[list[int], list[str]]:
    """The pseudo-kernels, by their ``taps``, and the branches of a state dict under our names."""
    layers = {name.rpartition('.')[0] for name in state_dict if '.mixer.' in name}
    kinds = {layer: layer.rpartition('.')[2] for layer in layers}
    taps = [state_dict.get(f'{name}.taps') for name, kind in kinds.items() if kind in KERNEL_SIZES]
    kernels = sorted({3 if found is None else found.numel() for found in taps})
    return kernels, [branch for layer, branch in BRANCHES.items() if layer in kinds.values()]


def ablated(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """``kernel_size`` and ``branches`` of an ``arch`` dict, if they are not the usual ones."""
    kernels, branches = kernels_and_branches(state_dict)
    found: dict[str, Any] = {}
    if any(kernel != 3 for kernel in kernels):
        found['kernel_size'] = kernels[-1]
    if branches and branches != [*BRANCHES.values()]:
        found['branches'] = tuple(branches)
    return found


def _mixers(state_dict: Mapping[str, Tensor]) -> str:
    kernels, branches = kernels_and_branches(state_dict)
    sizes = f'kernel_size {"-".join(map(str, kernels))}, ' if kernels else ''
    return f'{sizes}branches {"-".join(branches)}'


def describe(state_dict: Mapping[str, Tensor]) -> str:
    """Depths, widths, pseudo-kernel and branches that a state dict under our names holds."""
    depths = count_per_stage(state_dict, r'stages\.(\d+)\.(\d+)\.')
    widths = widths_per_stage(state_dict, r'stages\.(\d+)\.\d+\.norm1\.weight')
    text = f'depths {joined(depths)}, widths {joined(widths)}, {_mixers(state_dict)}'
    return text if depths else 'no CycleMLP block'


CYCLEMLP_FORMAT = PublishedFormat(
    family='CycleMLP',
    example='patch_embed.proj.weight',
    our_example='stem.proj.weight',
    is_published=has_name(r'(network|patch_embed)\..*'),
    to_ours=to_ours,
    describe=describe,
    from_paddle=from_paddle,
    is_certain=is_certainly_published,
    is_ours=is_ours,
)
