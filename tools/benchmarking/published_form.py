"""CycleMLP in the form it was published in, on ``deform_conv2d``: what speed and results are
compared with. No model uses it.

Same weights, same outputs; the order of operations, and what each of them reads and keeps, are the
published code's (github.com/ShoufaChen/CycleMLP). Only the layout at stage borders is ours.
"""

import copy

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from cyclemlp_mm.models.cyclemlp import CycleBlock
from cyclemlp_mm.ops import KERNEL_H, KERNEL_W, MixerWeights, cycle_offsets, reference_mixer


def _deformed(x: Tensor, weight: Tensor, bias: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """A CycleFC on (B, C, H, W), as a 1x1 deformable convolution; returns (B, H, W, C)."""
    batch, channels, height, width = x.shape
    # Under autocast torchvision runs it in float32 (on GPUs by itself, on a CPU not at all).
    dtype = torch.promote_types(x.dtype, weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        offset = cycle_offsets(channels, kernel_size).to(x.device, dtype)
        offset = offset.reshape(1, 2 * channels, 1, 1).expand(batch, -1, height, width)
        weight = weight.to(dtype)[:, :, None, None]
        y = deform_conv2d(x.to(dtype), offset, weight, bias.to(dtype))
    return y.to(x.dtype).permute(0, 2, 3, 1)


def published_mixer(x: Tensor, weights: MixerWeights) -> Tensor:
    """The mixer as published, (B, H, W, C) to the same shape."""
    nchw = x.permute(0, 3, 1, 2)
    h = _deformed(nchw, weights.weight_h, weights.bias_h, KERNEL_H)
    w = _deformed(nchw, weights.weight_w, weights.bias_w, KERNEL_W)
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


MIXERS = {'published': published_mixer, 'reference': reference_mixer}


class WholeMapBlock(nn.Module):
    """A CycleBlock's modules, run one after another over the whole map; names and weights stay."""

    def __init__(self, block: CycleBlock, mixer: str) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.mix = MIXERS[mixer]

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        x = x + self.drop_path(self.mix(self.norm1(x), self.mixer.mixer_weights()))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def published_form(model: nn.Module, mixer: str = 'published') -> nn.Module:
    """Copy a model, with every CycleMLP block in the form it was published in.

    ``mixer`` is 'published' (``deform_conv2d``) or 'reference' (plain shift + Linear). State dict
    and outputs are the same. Raises a ValueError if there is no CycleMLP block in the model, or one
    with another pseudo-kernel or fewer branches than published.
    """
    model = copy.deepcopy(model)
    blocks = [name for name, module in model.named_modules() if isinstance(module, CycleBlock)]
    if not blocks:
        raise ValueError(f'there is no CycleMLP block in {type(model).__name__}')
    for name in blocks:
        parent, _, child = name.rpartition('.')
        block = model.get_submodule(name)
        if block.mixer.own_weights() is None:
            raise ValueError(f'{name} has not the published kernel, branches and layers')
        setattr(model.get_submodule(parent), child, WholeMapBlock(block, mixer))
    return model
