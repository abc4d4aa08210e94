"""Which dtype an operator computes in, with and without autocast."""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Where matrix products are made: in autocast's dtype where it is on, else in that of ``x``.

    Args:
        x (Tensor): The input; float64 stays float64, as autocast leaves it.
    """
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where sums, means and small matrices are made: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)
