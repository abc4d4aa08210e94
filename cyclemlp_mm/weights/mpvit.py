"""Published MPViT names to ours: pure renamings, by ``_RENAMED``.

A position encoding that all layers of a path share is in the file under each of them, too: these
copies are compared and dropped.

Source of the names: lists of the published state dicts, not the published code (GPL 3.0).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError

from .published import PublishedFormat, count_per_stage, has_name, joined, widths_per_stage

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


def to_ours(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state dict; copies of a shared tensor must be equal."""
    ours = {}
    for name, tensor in published.items():
        match = _SHARED.fullmatch(name)
        first = match[1] + match[4] if match else ''
        if first not in published:
            for pattern, new in _RENAMED:
                name = re.sub(pattern, new, name)
            ours[name] = tensor
        elif not torch.equal(tensor, published[first]):
            raise CheckpointError(
                f'{name} differs from {first}, but the layers of a path share this tensor'
            )
    return ours


def describe(state_dict: Mapping[str, Tensor]) -> str:
    """Paths, depths and widths that a state dict under our names holds."""
    layer = r'stages\.(\d+)\.paths\.%s\.layers\.%s\.norm1\.weight'
    paths = joined(count_per_stage(state_dict, layer % (r'(\d+)', r'\d+')))
    depths = joined(count_per_stage(state_dict, layer % (r'\d+', r'(\d+)')))
    widths = joined(widths_per_stage(state_dict, layer % (r'\d+', r'\d+')))
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
