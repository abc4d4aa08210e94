"""Multiply-adds of a backbone in the published form, and in the form that is really run."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cyclemlp_mm.analysis import backbone_multiply_adds
from cyclemlp_mm.models.cyclemlp import CycleMixer
from cyclemlp_mm.ops.cycle_mixer import choose_backend
from cyclemlp_mm.ops.shifted_product import operand_width


def published_operations(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one forward pass, a CycleFC counting C · C per token.

    Args:
        model (nn.Module): Anything that runs on the meta device.
        shape (tuple[int]): Of the images, (B, 3, H, W).
    """
    return backbone_multiply_adds(copy.deepcopy(model).to('meta', torch.float32).eval(), shape)


def run_operations(
    model: nn.Module,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Multiply-adds of the forms that the mixers take on a device, making the matrices included.

    Args:
        model (nn.Module): Anything that runs on the meta device.
        shape (tuple[int]): Of the images, (B, 3, H, W).
        device (torch.device): The device.
        dtype (torch.dtype): Of the products. Defaults to float32.
    """
    model = copy.deepcopy(model).to('meta', torch.float32).eval()
    difference = 0

    def count(mixer: CycleMixer, inputs: tuple, output: object) -> None:
        nonlocal difference
        batch, height, width, channels = inputs[0].shape
        reweight = mixer.reweight is not None
        form = mixer.backend
        if form == 'auto':
            form = choose_backend(inputs[0].shape, device, dtype, reweight)
        tokens, columns = batch * height * width, operand_width(channels) - 1
        if form == 'reference':
            return
        run = tokens * columns * channels
        if form == 'shift':
            run += tokens * channels**2
        else:
            run += (batch if reweight else 1) * columns * channels**2
        difference += run - 4 * tokens * channels**2

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, CycleMixer)]
    total = backbone_multiply_adds(model, shape)
    for handle in handles:
        handle.remove()
    return total + difference
