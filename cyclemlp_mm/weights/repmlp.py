"""RepMLPNet's files: mmpretrain's names, which are ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from .published import PublishedFormat


def is_ours(names: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a RepMLPNet backbone, without a prefix."""
    return any(re.match(r'stages\.\d+\.\d+\.repmlp_block\.', name) for name in names)


REPMLP_FORMAT = PublishedFormat(
    family='RepMLPNet',
    example='patch_embed.projection.weight',
    extras={'classifier': r'head\.(fc\.)?(weight|bias)'},
    is_ours=is_ours,
)
