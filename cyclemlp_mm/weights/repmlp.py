"""RepMLPNet's files: mmpretrain's names, which are ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from .published import PublishedFormat, count_per_stage, has_name, joined


def describe(state_dict: Mapping[str, Tensor]) -> str:
    """Depths, and kernels of the local perceptron, that a state dict holds."""
    depths = joined(count_per_stage(state_dict, r'stages\.(\d+)\.(\d+)\.'))
    kernels = sorted({k for name in state_dict for k in re.findall(r'\.repconv(\d+)\.', name)})
    return f'depths {depths or "none"}, reparam_conv_kernels {", ".join(kernels) or "none"}'


REPMLP_FORMAT = PublishedFormat(
    family='RepMLPNet',
    example='patch_embed.projection.weight',
    describe=describe,
    is_ours=has_name(r'stages\.\d+\.\d+\.repmlp_block\..*'),
)
