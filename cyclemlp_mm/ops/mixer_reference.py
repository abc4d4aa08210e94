"""The mixer in the published order of operations: what every faster form must equal."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import accumulate_dtype
from .cycle_fc import cycle_fc
from .map_sums import sum_over_space
from .mixer_weights import KERNEL_H, KERNEL_W, MixerWeights, branch_weights
from .recording import standard_operators_only


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
        sums = [sum_over_space(branch, accumulate_dtype(c.dtype)) for branch in (h, w, c)]
        mean = (sum(sums) / (c.shape[1] * c.shape[2])).to(c.dtype)
        a_h, a_w, a_c = (a[:, None, None, :] for a in branch_weights(mean, weights.reweight))
        if standard_operators_only(x, weights.weight_c):
            mixed = h * a_h + w * a_w + c * a_c
        else:
            # In place where no gradient needs h: on small maps, memory costs more than multiplying.
            mixed = h * a_h if torch.is_grad_enabled() else h.mul_(a_h)
            mixed.addcmul_(w, a_w).addcmul_(c, a_c)
    return F.linear(mixed, weights.weight_proj, weights.bias_proj)
