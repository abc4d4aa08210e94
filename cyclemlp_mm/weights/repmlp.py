"""RepMLPNet's files: mmpretrain's names, which are ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from .published import PublishedFormat


def is_ours(names: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a RepMLPNet backbone, without a prefix."""
    return any(re.match(r'stages\.\d+\.\d+\.repmlp_block\.', name) for name in names)


def describe(state_dict: Mapping[str, Tensor]) -> str:
    """Depths, and kernels of the local perceptron, that a state dict holds."""
    found = [re.match(r'stages\.(\d+)\.(\d+)\.', name) for name in state_dict]
    depths: dict[str, int] = {}
    for match in filter(None, found):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    kernels = sorted({k for name in state_dict for k in re.findall(r'\.repconv(\d+)\.', name)})
    listed = '-'.join(str(depths[i]) for i in sorted(depths)) or 'none'
    return f'depths {listed}, reparam_conv_kernels {", ".join(kernels) or "none"}'


REPMLP_FORMAT = PublishedFormat(
    family='RepMLPNet',
    example='patch_embed.projection.weight',
    describe=describe,
    extras={'classifier': r'head\.(fc\.)?(weight|bias)'},
    is_ours=is_ours,
)
