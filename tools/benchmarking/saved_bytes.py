"""What a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_for_backward(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes kept for backward, each memory counted once, parameters left out.

    Args:
        forward (Callable): Runs the forward pass; its result is dropped.
        model (nn.Module): Its parameters and buffers are not counted.
    """
    left_out = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in left_out:
            kept[pointer] = tensor  # held, so that no other memory takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return size
