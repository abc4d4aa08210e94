"""Linears of inference on a CPU, with what follows them done while the result is in registers.

oneDNN can add a tensor or take the GELU inside its matrix product, by the operator that
``torch.compile`` uses. Without oneDNN, or in other dtypes, public operators do the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .recording import is_measured, needs_grad

#: Longest sums that oneDNN is given: it is less exact than the BLAS in float32, as it adds up in
#: fewer partial sums.
_ONEDNN_MAX_SUM = {torch.float32: 640}
# On an x86 without AVX-512, oneDNN has no product in bfloat16 and raises.
_supports_bfloat16 = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
if _supports_bfloat16 is not None and _supports_bfloat16():
    _ONEDNN_MAX_SUM[torch.bfloat16] = 2**31


def has_onednn(x: Tensor) -> bool:
    """Whether oneDNN's fused Linear is to be taken for an input (..., C_in): on a CPU, in float32
    up to C_in = 640, and in bfloat16 where the processor has AVX-512."""
    return (
        x.device.type == 'cpu'
        and not is_measured()  # which counts public operators
        and x.shape[-1] <= _ONEDNN_MAX_SUM.get(x.dtype, 0)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, '_linear_pointwise')
    )


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x weightᵀ + bias)`` of contiguous x, (N, C_in)."""
    if has_onednn(x):
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, 'gelu', [], 'none')
    return torch.ops.aten.gelu_(F.linear(x, weight, bias))


def linear_add(
    x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """``added + x weightᵀ + bias`` of contiguous x, (N, C_in), and ``added``, (N, C_out), written
    to ``out`` if given, which may be ``added`` itself."""
    if has_onednn(x):
        linear = torch.ops.mkldnn._linear_pointwise
        if added is None:
            y = linear.default(x, weight, bias, 'none', [], '')
        else:
            y = linear.binary(x, added, weight, bias, 'add')
        return y if out is None else out.copy_(y)
    if added is None:
        if bias is None:
            return torch.mm(x, weight.mT, out=out)
        return torch.addmm(bias, x, weight.mT, out=out)
    y = torch.addmm(added, x, weight.mT, out=out)
    return y if bias is None else y.add_(bias)


def add_linear(x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None) -> Tensor:
    """``added + linear(x)`` of contiguous tensors (..., C), differentiable; fused where no gradient
    is needed."""
    recorded = needs_grad(x, weight, bias, added)
    if added is None or recorded or added.dtype != x.dtype or not has_onednn(x):
        y = F.linear(x, weight, bias)
        return y if added is None else added + y
    return torch.ops.mkldnn._linear_pointwise.binary(x, added, weight, bias, 'add')


def add_linear_grad(weight: Tensor, bias: Tensor, grad: Tensor, x: Tensor) -> None:
    """Add to the gradients of a Linear's weight, (C_out, C_in), and bias, which may be of a more
    precise dtype, from that of its output, (N, C_out), and its input, (N, C_in)."""
    if weight.dtype == grad.dtype:
        weight.addmm_(grad.mT, x)
    else:
        weight += grad.mT @ x
    bias += grad.sum(0, dtype=bias.dtype)
