"""Which dtype an operator computes in, with and without autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def _autocast_dtype(device: str) -> torch.dtype | None:
    """Autocast's dtype for a kind of device; None where it is off or not known."""
    if device not in ('cpu', 'cuda'):
        return None
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # Before PyTorch 2.4 every kind of device had functions of its own.
    if device == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def compute_dtype(x: Tensor) -> torch.dtype:
    """Where matrix products are made: in autocast's dtype where it is on, else in that of ``x``.

    Args:
        x (Tensor): The input; float64 stays float64, as autocast leaves it.
    """
    dtype = None if x.dtype == torch.float64 else _autocast_dtype(x.device.type)
    return x.dtype if dtype is None else dtype


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where sums, means and small matrices are made: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of ``x``; none at all where autocast is off."""
    device = x.device.type
    if _autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device, enabled=False)
