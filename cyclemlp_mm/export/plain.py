"""A model in the form to be exported: the same function, of standard operations only.

What runs fast in PyTorch (views written in place, chunks, custom gradients, a choice of form by the
map's size) makes a graph that is tied to one size. Here every block is written as shift, Linear and
the like on whole maps, without a branch that depends on a size.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.models.cyclemlp import CycleBlock, CycleMixer
from cyclemlp_mm.models.layers import PatchMerging
from cyclemlp_mm.ops import KERNEL_H, KERNEL_W, ReweightWeights, branch_weights

from .adaptive_pool import PlainAdaptiveAvgPool2d


def plain_form(model: nn.Module) -> nn.Module:
    """A copy of ``model`` to export with ONNX, ``torch.export`` or ``torch.jit.trace``.

    Args:
        model (nn.Module): With or without CycleMLP blocks in it.

    Returns:
        nn.Module: In eval mode, without gradients; weights are shared with ``model``.
    """
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    plain = copy.deepcopy(model, memo)
    plain = _replace(plain)
    return plain.eval()


def _replace(module: nn.Module) -> nn.Module:
    if isinstance(module, CycleBlock):
        return PlainBlock(module)
    if isinstance(module, PatchMerging):
        return PlainPatchMerging(module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return PlainAdaptiveAvgPool2d(module.output_size)
    if type(module).__name__ == 'Upsample' and type(module).__module__.startswith('mmseg.'):
        return PlainUpsample(module)
    for name, child in module.named_children():
        replaced = _replace(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


class PlainBlock(nn.Module):
    """A :class:`CycleBlock` in eval mode, from its parts.

    Args:
        block (CycleBlock): Its layers are taken over.
    """

    def __init__(self, block: CycleBlock) -> None:
        super().__init__()
        self.norm1, self.mixer = block.norm1, PlainMixer(block.mixer)
        self.norm2, self.mlp = block.norm2, block.mlp

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainMixer(nn.Module):
    """A :class:`CycleMixer` whose shifts are slices of a padded map.

    The channels are put in order of their offset once, in the weights, so that the map is cut into
    three runs of channels and no channel is written by itself.

    Args:
        mixer (CycleMixer): Its parameters are taken over.
    """

    def __init__(self, mixer: CycleMixer) -> None:
        super().__init__()
        w = mixer.mixer_weights()
        self.reweight = mixer.reweight  # the module: a tracer refuses tensors it does not hold
        order = torch.cat([torch.arange(r, w.weight_h.shape[1], 3) for r in range(3)])
        self.register_buffer('weight_h', w.weight_h.detach()[:, order])
        self.register_buffer('weight_w', w.weight_w.detach()[:, order])
        self.bias_h, self.bias_w = w.bias_h, w.bias_w
        self.weight_c = w.weight_c
        self.weight_proj, self.bias_proj = w.weight_proj, w.bias_proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        h = F.linear(shift_by_slices(x, KERNEL_H), self.weight_h, self.bias_h)
        w = F.linear(shift_by_slices(x, KERNEL_W), self.weight_w, self.bias_w)
        c = F.linear(x, self.weight_c)
        mixed = h + w + c
        if self.reweight is not None:
            fc1, fc2 = self.reweight.fc1, self.reweight.fc2
            reweight = ReweightWeights(fc1.weight, fc1.bias, fc2.weight, fc2.bias)
            branches = branch_weights(mixed.mean(dim=(1, 2)), reweight)
            a_h, a_w, a_c = (a[:, None, None, :] for a in branches)
            mixed = h * a_h + w * a_w + c * a_c
        return F.linear(mixed, self.weight_proj, self.bias_proj)


def shift_by_slices(x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Shifted channels, grouped by offset: channels 0, 3, 6, …, then 1, 4, 7, …, then 2, 5, 8, ….

    Args:
        x (Tensor): (B, H, W, C).
        kernel_size (tuple[int, int]): (1, 3) or (3, 1).

    Returns:
        Tensor: (B, H, W, C); ``cycle_shift(x, kernel_size)`` with the channels in that order.
    """
    # Offsets 0, +1, -1: of the map with a border of zeros, the middle, all but the first two and
    # all but the last two.
    if kernel_size == KERNEL_H:
        own, plus, minus = x, F.pad(x, (0, 0, 0, 1))[:, :, 1:], F.pad(x, (0, 0, 1, 0))[:, :, :-1]
    else:
        own = x
        plus = F.pad(x, (0, 0, 0, 0, 0, 1))[:, 1:]
        minus = F.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1]
    return torch.cat([own[..., 0::3], plus[..., 1::3], minus[..., 2::3]], dim=-1)


class PlainPatchMerging(nn.Module):
    """A :class:`PatchMerging` that pads every map alike, whether its sides are odd or even.

    Args:
        merging (PatchMerging): Its layers are taken over.
    """

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.norm, self.reduction = merging.norm, merging.reduction

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2C)."""
        even, odd = x[:, 0::2], _odd_positions(x, dim=1)
        parts = [even[:, :, 0::2], odd[:, :, 0::2]]
        parts += [_odd_positions(even, dim=2), _odd_positions(odd, dim=2)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


def _odd_positions(x: Tensor, dim: int) -> Tensor:
    """Positions 1, 3, … along a dim of (B, H, W, C), as many as even ones: the last may be zero."""
    pad = (0, 0, 0, 0, 0, 1) if dim == 1 else (0, 0, 0, 1)
    padded = F.pad(x, pad)
    return padded[:, 1::2] if dim == 1 else padded[:, :, 1::2]


class PlainUpsample(nn.Module):
    """mmseg's ``Upsample``, without the ``int()`` that ties the graph to one size.

    Args:
        upsample (nn.Module): mmseg's, with a whole ``scale_factor``.

    Raises:
        UserError: It has another scale.
    """

    def __init__(self, upsample: nn.Module) -> None:
        super().__init__()
        factor = upsample.scale_factor
        if upsample.size or isinstance(factor, tuple) or int(factor) != factor:
            raise UserError(
                f'cannot export {upsample} for any size: it needs a whole scale_factor, and no size'
            )
        self.factor = int(factor)
        self.mode, self.align_corners = upsample.mode, upsample.align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, factor · H, factor · W)."""
        size = [side * self.factor for side in x.shape[2:]]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)
