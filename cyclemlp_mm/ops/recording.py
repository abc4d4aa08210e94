"""When a computation has to be made of standard operators.

The fast forms call operators that only PyTorch's own compiler uses, write into parts of results,
and have a gradient that is written by hand. That is right for a tensor with numbers in it, and for
its gradient. Whoever records operators, counts them, derives them in another way or puts another
class in the place of a tensor needs operators that PyTorch documents, on whole maps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

#: What a tensor is whose numbers are all there is to it.
_PLAIN_TYPES = (Tensor, nn.Parameter)


def is_recording() -> bool:
    """True inside ``torch.compile`` (before PyTorch 2.3 there is no public way to tell) and
    ``torch.jit.trace``, which counters of operations use, too."""
    ask = getattr(torch.compiler, 'is_compiling', None)
    return torch.jit.is_tracing() or (ask is not None and ask())


def is_compiled() -> bool:
    """True inside ``torch.compile`` and strict exports, which both read the Python code."""
    ask = getattr(torch.compiler, 'is_dynamo_compiling', None)
    return ask is not None and ask()


def is_transformed() -> bool:
    """True inside transforms of ``torch.func`` (grad, vjp, jvp, vmap, …) and of forward-mode AD."""
    level = torch._C._functorch.peek_interpreter_stack()  # None, which a compiler cannot compare
    inside = isinstance(level, torch._C._functorch.CInterpreter)
    return inside or forward_ad._current_level >= 0


def is_plain(tensor: Tensor | None) -> bool:
    """Whether it is None, or a tensor of no subclass (fake, sharded, quantised) and not sparse."""
    return tensor is None or (type(tensor) in _PLAIN_TYPES and tensor.layout is torch.strided)


def standard_operators_only(*tensors: Tensor | None) -> bool:
    """Whether only standard operators on whole maps may be used, for any reason.

    That is where a graph is recorded (``torch.compile``, ``torch.jit.trace``, ``torch.export``,
    ``FakeTensorMode``), inside transforms of ``torch.func`` and forward-mode AD, while a mode sees
    every operator (``FlopCounterMode``), and for tensors of a subclass, without numbers (meta) or
    on devices other than CPU and GPU.

    Args:
        *tensors (Tensor, optional): What would be computed with.
    """
    # Recording comes first: a compiler knows its answer, and need not look at the others.
    if (
        is_recording()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or _has_function_mode()
        or F.linear is not torch._C._nn.linear  # counters put their own functions there
    ):
        return True
    return any(t is not None and not (is_plain(t) and (t.is_cpu or t.is_cuda)) for t in tensors)


def _has_function_mode() -> bool:
    """Whether a ``TorchFunctionMode`` is active, other than that of ``with torch.device(…)``."""
    return torch._C._len_torch_function_stack() > 0 and any(
        type(mode) is not DeviceContext
        for mode in torch.overrides._get_current_function_mode_stack()
    )
