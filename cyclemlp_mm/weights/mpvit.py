"""Published MPViT names to ours: pure renamings, and copies of shared tensors left out.

| published, ``patch_embed_stages.{s}.patch_embeds.{p}.patch_conv.…`` | ours, ``stages.{s}.…`` |
|---|---|
| ``dwconv``, ``pwconv``, ``bn`` | ``embeds.{p}.{depthwise, pointwise.conv, pointwise.norm}`` |

| published, after ``mhca_stages.{s}.`` | ours, after ``stages.{s}.`` |
|---|---|
| ``mhca_blks.{p}.cpe.proj`` | ``paths.{p}.position`` |
| ``mhca_blks.{p}.crpe.conv_list.{k}`` | ``paths.{p}.relative.{k}`` |
| ``mhca_blks.{p}.MHCA_layers.{l}.factoratt_crpe.qkv``, proj | ``paths.{p}.layers.{l}.qkv`` |
| ``….MHCA_layers.{l}.{cpe,crpe,factoratt_crpe.crpe}`` | the path's again: compared, dropped |
| ``InvRes.{conv1,conv2}`` | ``local.{conv1,conv2}`` |
| ``InvRes.dwconv``, ``InvRes.norm`` | ``local.depthwise.{conv,norm}`` |
| ``aggregate.{conv,bn}`` | ``aggregate.{conv,norm}`` |

And ``stem.{i}.bn`` is ``stem.{i}.norm``, ``cls_head.cls``, the classifier, ``head``.

Source of the names: lists of the published state dicts, not the published code (GPL 3.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError

from .published import PublishedFormat, count_per_stage, has_name, widths_per_stage

_PATH = r'mhca_stages\.(\d+)\.mhca_blks\.(\d+)\.'
_SHARED = re.compile(
    rf'({_PATH})MHCA_layers\.\d+\.(?:factoratt_crpe\.)?((?:cpe\.proj|crpe\.conv_list\.\d+)\..+)'
)
_RENAMED = (
    (r'patch_embed_stages\.(\d+)\.patch_embeds\.(\d+)\.patch_conv\.', r'stages.\1.embeds.\2.'),
    (_PATH, r'stages.\1.paths.\2.'),
    (r'mhca_stages\.(\d+)\.InvRes\.', r'stages.\1.local.'),
    (r'mhca_stages\.(\d+)\.', r'stages.\1.'),
    (r'cls_head\.cls\.', 'head.'),
    # Inside a stage, after the prefixes above.
    (r'^(stages\.\d+\.embeds\.\d+\.)dwconv\.', r'\1depthwise.'),
    (r'^(stages\.\d+\.embeds\.\d+\.)pwconv\.', r'\1pointwise.conv.'),
    (r'^(stages\.\d+\.embeds\.\d+\.)bn\.', r'\1pointwise.norm.'),
    (r'^(stages\.\d+\.paths\.\d+\.)cpe\.proj\.', r'\1position.'),
    (r'^(stages\.\d+\.paths\.\d+\.)crpe\.conv_list\.', r'\1relative.'),
    (r'\.MHCA_layers\.', '.layers.'),
    (r'\.factoratt_crpe\.', '.'),
    (r'^(stages\.\d+\.local\.)dwconv\.', r'\1depthwise.conv.'),
    (r'^(stages\.\d+\.local\.)norm\.', r'\1depthwise.norm.'),
    (r'\.bn\.', '.norm.'),
)


def rename(name: str) -> str:
    """Our name for a published one; other names come back unchanged."""
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return name


def to_ours(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state dict.

    Raises:
        CheckpointError: A tensor that all layers of a path share differs between them.
    """
    ours = {}
    for name, tensor in published.items():
        match = _SHARED.fullmatch(name)
        first = match[1] + match[4] if match else ''
        if first not in published:
            ours[rename(name)] = tensor
        elif not torch.equal(tensor, published[first]):
            raise CheckpointError(
                f'{name} differs from {first}, but the layers of a path share this tensor: the '
                'file is of another architecture or was damaged'
            )
    return ours


def describe(state_dict: Mapping[str, Tensor]) -> str:
    """Paths, depths and widths that a state dict under our names holds."""
    layer = r'stages\.(\d+)\.paths\.%s\.layers\.%s\.norm1\.weight'
    paths = count_per_stage(state_dict, layer % (r'(\d+)', r'\d+'))
    depths = count_per_stage(state_dict, layer % (r'\d+', r'(\d+)'))
    widths = widths_per_stage(state_dict, layer % (r'\d+', r'\d+'))
    return f'paths {paths}, depths {depths}, widths {widths}' if paths else 'no MPViT stage'


is_published = has_name(r'(mhca_stages|patch_embed_stages)\..*')
MPVIT_FORMAT = PublishedFormat(
    family='MPViT',
    example='patch_embed_stages.0.patch_embeds.0.patch_conv.dwconv.weight',
    our_example='stem.0.conv.weight',
    is_published=is_published,
    to_ours=to_ours,
    describe=describe,
    is_certain=is_published,
    is_ours=has_name(r'stages\.\d+\.paths\.\d+\.position\.weight'),
)
