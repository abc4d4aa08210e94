"""CycleMLP in the form it was published in, on ``deform_conv2d``: what speed and results are
compared with. No model uses it.

Same weights, same outputs; the order of operations, and what each of them reads and keeps, are the
published code's (github.com/ShoufaChen/CycleMLP). Only the layout at stage borders is ours.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from cyclemlp_mm.models.cyclemlp import CycleBlock
from cyclemlp_mm.ops import KERNEL_H, KERNEL_W, MixerWeights, cycle_offsets, reference_mixer


def published_cycle_fc(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: tuple[int, int]
) -> Tensor:
    """A CycleFC on an NCHW map, as a 1x1 deformable convolution with constant integer offsets.

    Args:
        x (Tensor): (B, C_in, H, W).
        weight (Tensor): (C_out, C_in).
        bias (Tensor, optional): (C_out,).
        kernel_size (tuple[int, int]): (1, k) or (k, 1).

    Returns:
        Tensor: (B, C_out, H, W).
    """
    batch, channels, height, width = x.shape
    # Under autocast torchvision runs it in float32 (on GPUs by itself, on a CPU not at all).
    dtype = torch.promote_types(x.dtype, weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        offset = cycle_offsets(channels, kernel_size).to(x.device, dtype)
        offset = offset.reshape(1, 2 * channels, 1, 1).expand(batch, -1, height, width)
        y = deform_conv2d(
            x.to(dtype),
            offset,
            weight.to(dtype)[:, :, None, None],
            None if bias is None else bias.to(dtype),
        )
    return y.to(x.dtype)


def published_mixer(x: Tensor, weights: MixerWeights) -> Tensor:
    """The mixer as published.

    Args:
        x (Tensor): (B, H, W, C), normed.
        weights (MixerWeights): Parameters.

    Returns:
        Tensor: (B, H, W, C).
    """
    nchw = x.permute(0, 3, 1, 2)
    h = published_cycle_fc(nchw, weights.weight_h, weights.bias_h, KERNEL_H).permute(0, 2, 3, 1)
    w = published_cycle_fc(nchw, weights.weight_w, weights.bias_w, KERNEL_W).permute(0, 2, 3, 1)
    c = nn.functional.linear(x, weights.weight_c)
    if weights.reweight is None:
        mixed = h + w + c
    else:
        mean = (h + w + c).permute(0, 3, 1, 2).flatten(2).mean(2)
        mlp = weights.reweight
        hidden = nn.functional.gelu(nn.functional.linear(mean, mlp.weight1, mlp.bias1))
        logits = nn.functional.linear(hidden, mlp.weight2, mlp.bias2)
        a = logits.reshape(*mean.shape, 3).permute(2, 0, 1).softmax(0)[:, :, None, None, :]
        mixed = h * a[0] + w * a[1] + c * a[2]
    return nn.functional.linear(mixed, weights.weight_proj, weights.bias_proj)


class PlainBlock(nn.Module):
    """A CycleBlock's modules, run one after another over the whole map.

    Args:
        block (CycleBlock): Gives its modules away: names and weights stay.
        mixer (str): 'published', or 'reference' for shift + Linear in the same order.
    """

    def __init__(self, block: CycleBlock, mixer: str) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self._mix = published_mixer if mixer == 'published' else reference_mixer

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        x = x + self.drop_path(self._mix(self.norm1(x), self.mixer.mixer_weights()))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def plain_form(model: nn.Module, mixer: str = 'published') -> nn.Module:
    """A copy of a model in which every CycleMLP block is a :class:`PlainBlock`.

    Args:
        model (nn.Module): A CycleMLP backbone, or anything that holds one.
        mixer (str): 'published' (``deform_conv2d``) or 'reference' (plain shift + Linear).
            Defaults to 'published'.

    Returns:
        nn.Module: Same state dict, same outputs.

    Raises:
        ValueError: Another ``mixer``, or there is no CycleMLP block in the model.
    """
    if mixer not in ('published', 'reference'):
        raise ValueError(f"mixer must be 'published' or 'reference', but got {mixer!r}")
    model = copy.deepcopy(model)
    holders = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, CycleBlock)
    ]
    if not holders:
        raise ValueError(f'there is no CycleMLP block in {type(model).__name__}')
    for parent, name in holders:
        setattr(parent, name, PlainBlock(getattr(parent, name), mixer))
    return model
