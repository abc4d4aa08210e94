"""The parameters of the mixer, as plain tensors, and the branch weights made from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Pseudo-kernels of the two shifted branches.
KERNEL_H, KERNEL_W = (1, 3), (3, 1)


class ReweightWeights(NamedTuple):
    """The MLP that weighs the branches: Linear C to C/4, GELU, Linear C/4 to 3C.

    Attributes:
        weight1 (Tensor): (C/4, C).
        bias1 (Tensor): (C/4,).
        weight2 (Tensor): (3C, C/4); the three branch logits of a channel are adjacent rows.
        bias2 (Tensor): (3C,).
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


class MixerWeights(NamedTuple):
    """Parameters of the mixer.

    Attributes:
        weight_h, weight_w, weight_c, weight_proj (Tensor): (C, C), out by in.
        bias_h, bias_w, bias_proj (Tensor): (C,).
        reweight (ReweightWeights, optional): None sums the branches unweighted.
    """

    weight_h: Tensor
    bias_h: Tensor
    weight_w: Tensor
    bias_w: Tensor
    weight_c: Tensor
    weight_proj: Tensor
    bias_proj: Tensor
    reweight: ReweightWeights | None


def branch_weights(mean: Tensor, reweight: ReweightWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of each branch, per image and channel (arXiv 2107.10224, Sec. 3.3).

    Args:
        mean (Tensor): (B, C), mean over space of h + w + c.
        reweight (ReweightWeights): The MLP.

    Returns:
        tuple[Tensor, Tensor, Tensor]: a_h, a_w, a_c, each (B, C); they sum to 1.
    """
    hidden = F.gelu(F.linear(mean, reweight.weight1, reweight.bias1))
    return softmax_branches(F.linear(hidden, reweight.weight2, reweight.bias2))


def softmax_branches(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of each branch from what the MLP gives.

    Args:
        logits (Tensor): (B, 3C); the three of a channel are adjacent.

    Returns:
        tuple[Tensor, Tensor, Tensor]: a_h, a_w, a_c, each (B, C); they sum to 1.
    """
    # (B, 3C) -> (B, C, 3): adjacent entries are the branches of one channel.
    weights = logits.reshape(logits.shape[0], logits.shape[1] // 3, 3).softmax(dim=-1)
    # Contiguous for each branch: maps are multiplied by them, which with gaps takes thrice as long.
    return weights.permute(2, 0, 1).contiguous().unbind(0)


def weigh_branches(means: Tensor, weights: MixerWeights) -> Tensor:
    """Weights of the branches from the means of the map and its shifted copies.

    Args:
        means (Tensor): (B, 3, C), of :func:`map_means`.
        weights (MixerWeights): Parameters, with ``reweight``.

    Returns:
        Tensor: (B, 3, C), of the dtype of ``means``: a_h, a_w, a_c.
    """
    dtype = means.dtype
    mean_c, mean_h, mean_w = means.unbind(1)
    mean = (
        F.linear(mean_h, weights.weight_h.to(dtype), weights.bias_h.to(dtype))
        + F.linear(mean_w, weights.weight_w.to(dtype), weights.bias_w.to(dtype))
        + F.linear(mean_c, weights.weight_c.to(dtype))
    )
    reweight = type(weights.reweight)(*(p.to(dtype) for p in weights.reweight))
    return torch.stack(branch_weights(mean, reweight), dim=1)
