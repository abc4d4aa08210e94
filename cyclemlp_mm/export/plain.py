"""A model in the form to be exported: the same function, of standard operators for any size.

While a graph is recorded, every block of ours already takes its plain form. Replaced here are
layers whose graph would hold at one size only, and the mixers, or their CycleFCs.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.models.cyclemlp import CycleBlock, CycleMixer
from cyclemlp_mm.ops import CycleFC, MixerWeights
from cyclemlp_mm.ops.cycle_fc import shifted_groups
from cyclemlp_mm.ops.cycle_mixer import softmax_branches
from cyclemlp_mm.ops.recording import is_plain_layer


def plain_form(model: nn.Module, constant_weights: bool = True) -> nn.Module:
    """Copy any model to export it with ONNX, ``torch.export`` or ``torch.jit.trace``.

    The copy is in eval mode, without gradients, and shares the weights that it does not rearrange.
    An upsampling layer of mmseg without a graph that holds at any size is a UserError.

    Args:
        model (nn.Module): Any model; it stays as it is.
        constant_weights (bool): Whether every matrix product has a constant weight, as quantisation
            tools need. False also folds mixers that weigh their branches per image, which saves
            about a seventh of the multiply-adds. Defaults to True.
    """
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return _replace(copy.deepcopy(model, memo), constant_weights).eval()


def _replace(module: nn.Module, constant_weights: bool) -> nn.Module:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return PlainAdaptiveAvgPool2d(module.output_size)
    if type(module).__name__ == 'Upsample' and type(module).__module__.startswith('mmseg.'):
        return PlainUpsample(module)
    if is_plain_layer(CycleFC, module, bias=None):
        return GroupedCycleFC(module)
    if isinstance(module, CycleMixer):
        weights = module.own_weights()
        if weights is not None and (module.reweight is None or not constant_weights):
            return FoldedMixer(weights, module.reweight)
        module.backend = 'reference'  # calls the layers that stand in for CycleFC
    if is_plain_layer(nn.Linear, module) and module.bias is not None:
        return FlatLinear(module)
    for name, child in module.named_children():
        replaced = _replace(child, constant_weights)
        if replaced is not child:
            setattr(module, name, replaced)
    return TokenBlock(module) if is_plain_layer(CycleBlock, module) else module


class TokenBlock(nn.Module):
    """A CycleBlock that norms and adds lists of tokens, and makes a map for the mixer only.

    OpenVINO takes the second axis of a map for its channels, and would reorder it for each norm
    and each sum.
    """

    def __init__(self, block: CycleBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        block, tokens = self.block, x.flatten(1, 2)
        mixed = block.mixer(block.norm1(tokens).reshape(x.shape))
        tokens = tokens + mixed.flatten(1, 2)
        return (tokens + block.mlp(block.norm2(tokens))).reshape(x.shape)


class FlatLinear(nn.Module):
    """A Linear over all positions at once: one Gemm, which adds the bias, too."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) to (..., C_out)."""
        y = F.linear(x.flatten(0, -2), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], len(self.weight))


class GroupedCycleFC(nn.Module):
    """A CycleFC that reads channels by offset: as many slices of the map as it has taps."""

    def __init__(self, layer: CycleFC) -> None:
        super().__init__()
        self.kernel_size, self.bias = layer.kernel_size, layer.bias
        taps = max(layer.kernel_size)
        groups = [layer.weight.detach()[:, i::taps] for i in range(taps)]
        self.register_buffer('weight', torch.cat(groups, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C_in) to (B, H, W, C_out)."""
        groups = torch.cat(shifted_groups(x, self.kernel_size), dim=-1)
        y = F.linear(groups.flatten(0, -2), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], len(self.weight))


class FoldedMixer(nn.Module):
    """A mixer as one product of a shifted operand with a matrix that holds all branches, and the
    projection unless folding that costs more, see :mod:`cyclemlp_mm.ops.shifted_product`. Matrices
    are (in, out) here, and the constant is apart."""

    #: Widest mixer that has the projection folded per image: that costs C^3, and saves C^2 N.
    MAX_FOLDED_CHANNELS: ClassVar[int] = 384

    def __init__(self, weights: MixerWeights, reweight: nn.Module | None) -> None:
        super().__init__()
        w_h, b_h, w_w, b_w, w_c, proj, bias = (
            t.detach().mT if t.dim() == 2 else t.detach() for t in weights[:7]
        )
        self.reweight = reweight
        self.folds = reweight is None or len(proj) <= self.MAX_FOLDED_CHANNELS
        in_place = (torch.arange(len(proj)) % 3 == 0).to(proj)[:, None]
        tensors = dict(
            here=torch.stack([w_h * in_place, w_w * in_place, w_c]),
            moved_h=torch.cat([w_h[1::3], w_h[2::3]]),
            moved_w=torch.cat([w_w[1::3], w_w[2::3]]),
            total=w_h + w_w + w_c,
            **dict(bias_h=b_h, bias_w=b_w, proj=proj, bias=bias),
        )
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.contiguous())
        if reweight is None:
            one = torch.ones_like(bias)[None, None]
            for name, tensor in zip(('matrix', 'constant'), self._fold(one, one, one)):
                self.register_buffer(name, tensor[0])

    def _fold(self, a_h: Tensor, a_w: Tensor, a_c: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix (B, 7C/3, C) and constant (B, 1, C) from weights of the branches, (B, 1, C)."""
        here = self.here[0] * a_h + self.here[1] * a_w + self.here[2] * a_c
        matrix = torch.cat([here, self.moved_h * a_h, self.moved_w * a_w], dim=1)
        constant = self.bias_h * a_h + self.bias_w * a_w
        if self.folds:
            matrix, constant = matrix @ self.proj, constant @ self.proj + self.bias
        return matrix, constant

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, H, W, C) to the same shape; ``residual``, of that shape, is added."""
        after, before = x[..., 1::3], x[..., 2::3]
        right, below = F.pad(after, (0, 0, 0, 1)), F.pad(after, (0, 0, 0, 0, 0, 1))
        left, above = F.pad(before, (0, 0, 1, 0)), F.pad(before, (0, 0, 0, 0, 1, 0))
        shifted = [right[:, :, 1:], left[:, :, :-1], below[:, 1:], above[:, :-1]]
        operand = torch.cat([x, *shifted], dim=-1).flatten(1, 2)
        if self.reweight is None:
            matrix, constant = self.matrix, self.constant
        else:
            # The shifted copies never read one border: their sums are the map's without it.
            lost_h = torch.cat([after[:, :, 0].sum(1), before[:, :, -1].sum(1)], dim=1)
            lost_w = torch.cat([after[:, 0].sum(1), before[:, -1].sum(1)], dim=1)
            lost = lost_h @ self.moved_h + lost_w @ self.moved_w
            number = x.shape[1] * x.shape[2]
            # A mean as a product, which runtimes compute in a fifth of the time.
            mean = x.new_full((1, number), 1 / number) @ x.flatten(1, 2)
            total = mean[:, 0] @ self.total + self.bias_h + self.bias_w
            a = softmax_branches(self.reweight(total - lost / number))
            matrix, constant = self._fold(*(weight[:, None] for weight in a))
        y = operand @ matrix + constant
        if not self.folds:
            y = y @ self.proj + self.bias
        y = y.reshape(x.shape)
        return y if residual is None else residual + y


class PlainUpsample(nn.Module):
    """mmseg's ``Upsample``, without the ``int()`` that ties the graph to one size."""

    def __init__(self, upsample: nn.Module) -> None:
        super().__init__()
        factor = upsample.scale_factor
        if upsample.size or isinstance(factor, tuple) or int(factor) != factor:
            fix = 'it needs a whole scale_factor, and no size'
            raise UserError(f'cannot export {upsample} for any size: {fix}')
        self.factor = int(factor)
        self.mode, self.align_corners = upsample.mode, upsample.align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, factor · H, factor · W)."""
        size = [side * self.factor for side in x.shape[2:]]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


class PlainAdaptiveAvgPool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products; ONNX has no operator for any size."""

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.output_size = (output_size,) * 2 if isinstance(output_size, int) else output_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, *output_size)."""
        out_h, out_w = self.output_size
        if out_h == out_w == 1:
            return x.mean(dim=(2, 3), keepdim=True)
        rows = _averaging_matrix(x.shape[2], out_h, x)
        return rows @ x @ _averaging_matrix(x.shape[3], out_w, x).mT


def _averaging_matrix(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size): row i averages positions floor(i·size/cells) to ceil((i+1)·size/cells) - 1."""
    position = torch.arange(size, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    # Position p is in cell i where i·size < (p+1)·cells and p·cells < (i+1)·size.
    inside = ((position + 1) * cells > cell * size) & (position * cells < (cell + 1) * size)
    inside = inside.to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
