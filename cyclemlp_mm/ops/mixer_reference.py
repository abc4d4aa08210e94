"""The mixer in the published order of operations: what every faster form must equal."""

import torch.nn.functional as F
from torch import Tensor

from .cycle_fc import cycle_fc
from .mixer_weights import KERNEL_H, KERNEL_W, MixerWeights, branch_weights


def reference_mixer(x: Tensor, weights: MixerWeights) -> Tensor:
    """Three branches, their weights, their weighted sum, the projection; shift + Linear as CycleFC.

    Args:
        x (Tensor): (B, H, W, C), normed.
        weights (MixerWeights): Parameters.

    Returns:
        Tensor: (B, H, W, C).
    """
    h = cycle_fc(x, weights.weight_h, weights.bias_h, KERNEL_H)
    w = cycle_fc(x, weights.weight_w, weights.bias_w, KERNEL_W)
    c = F.linear(x, weights.weight_c)
    if weights.reweight is None:
        mixed = h + w + c
    else:
        branches = branch_weights((h + w + c).mean(dim=(1, 2)), weights.reweight)
        a_h, a_w, a_c = (a[:, None, None, :] for a in branches)
        mixed = h * a_h + w * a_w + c * a_c
    return F.linear(mixed, weights.weight_proj, weights.bias_proj)
