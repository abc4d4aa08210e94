"""Automatic mixed precision where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Trains under CPU autocast in bfloat16; mmengine's ``AmpOptimWrapper`` needs a GPU.

    bfloat16 has float32's range, so losses are not scaled and there is no scaler's state: a
    checkpoint goes on with or without mixed precision. Weights, gradients and the optimizer's state
    stay float32.

    Args:
        **kwargs: As for :class:`mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward pass, inside mmengine's own context."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
