"""A model in the form to be exported: the same function, of standard operators for any size.

While a graph is recorded, every block of ours already takes its plain form. Replaced here are
layers whose graph would hold at one size only, and CycleFC: its sorted weights are constants, which
quantisation tools need.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.models.cyclemlp import CycleMixer
from cyclemlp_mm.ops import CycleFC
from cyclemlp_mm.ops.cycle_fc import shifted_groups
from cyclemlp_mm.ops.recording import is_plain_layer


def plain_form(model: nn.Module) -> nn.Module:
    """Copy any model to export it with ONNX, ``torch.export`` or ``torch.jit.trace``.

    The copy is in eval mode, without gradients, and shares the weights. An upsampling layer of
    mmseg without a graph that holds at any size is a UserError.
    """
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return _replace(copy.deepcopy(model, memo)).eval()


def _replace(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return PlainAdaptiveAvgPool2d(module.output_size)
    if type(module).__name__ == 'Upsample' and type(module).__module__.startswith('mmseg.'):
        return PlainUpsample(module)
    if is_plain_layer(CycleFC, module, bias=None):
        return GroupedCycleFC(module)
    if isinstance(module, CycleMixer):
        module.backend = 'reference'  # calls the layers that stand in for CycleFC
    for name, child in module.named_children():
        replaced = _replace(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


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
        x = torch.cat(shifted_groups(x, self.kernel_size), dim=-1)
        return F.linear(x, self.weight, self.bias)


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
