"""Whether an operator may take its fast form, and in which dtype it computes.

Fast forms call operators of PyTorch's compiler, write into parts of results, and have gradients
written by hand. Tracers, counters of operators, transforms of ``torch.func`` and tensor subclasses
need documented operators on whole maps; a layer that was changed has to be called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _modules
from torch.utils._device import DeviceContext

#: Hooks on all modules at once, by ``register_module_forward_hook``, ….
_GLOBAL_HOOKS = (
    _modules._global_forward_pre_hooks,
    _modules._global_forward_hooks,
    _modules._global_backward_pre_hooks,
    _modules._global_backward_hooks,
)

_plain_types: tuple[type, ...] = (Tensor, nn.Parameter)
_measured_device: str | None = None


@contextmanager
def measured_as(device: str, tensor_type: type) -> Iterator[None]:
    """Take the forms of a training on ``device``, 'cpu' or 'cuda', for tensors of a subclass
    without numbers and under modes: :mod:`cyclemlp_mm.step_memory` counts what they allocate."""
    global _plain_types, _measured_device
    before = _plain_types, _measured_device
    _plain_types, _measured_device = (*_plain_types, tensor_type), device
    try:
        yield
    finally:
        _plain_types, _measured_device = before


def is_measured() -> bool:
    """Whether inside :func:`measured_as`."""
    return _measured_device is not None


def runs_on_cpu(tensor: Tensor) -> bool:
    """Whether to take the forms of a CPU."""
    return tensor.is_cpu if _measured_device is None else _measured_device == 'cpu'


def is_recording() -> bool:
    """True inside ``torch.compile`` (of PyTorch 2.3 or later) and ``torch.jit.trace``."""
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
    return tensor is None or (type(tensor) in _plain_types and tensor.layout is torch.strided)


def standard_operators_only(*tensors: Tensor | None) -> bool:
    """Whether only standard operators on whole maps may be used on these tensors: in recorded
    graphs (``torch.compile``, ``torch.export``, …), transforms of ``torch.func``, forward-mode AD
    and modes that see every operator, and for subclasses and devices other than CPU and GPU."""
    if (  # recording comes first, so that a compiler need not look at the others
        is_recording()
        or is_transformed()
        or (_has_mode() and not is_measured())
        or F.linear is not torch._C._nn.linear  # counters put their own functions there
    ):
        return True
    return any(t is not None and not (is_plain(t) and (t.is_cpu or t.is_cuda)) for t in tensors)


def _has_mode() -> bool:
    """Whether a ``TorchDispatchMode`` is active, or a ``TorchFunctionMode`` other than that of
    ``with torch.device(…)``."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return True
    return torch._C._len_torch_function_stack() > 0 and any(
        type(mode) is not DeviceContext
        for mode in torch.overrides._get_current_function_mode_stack()
    )


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def is_plain_layer(
    kind: type, *modules: nn.Module, bias: bool | None = True, **settings: object
) -> bool:
    """Whether layers of exactly this class may be computed from their parameters alone.

    A layer that was replaced (LoRA, quantised, sharded), parametrised or given hooks has to be
    called, or the change would have no effect. ``bias`` says whether it must have one (None: it
    may); ``settings`` are attributes and their values, e.g. ``kernel_size=(1, 3)``.
    """
    for module in modules:
        if type(module) is not kind or has_hooks(module):
            return False
        own = module.__dict__
        # Replicas of DataParallel, and FSDP, hold parameters as attributes.
        held = {name: own[name] for name in ('weight', 'bias') if name in own}
        for name, tensor in (*own['_parameters'].items(), *held.items()):
            optional = name == 'bias' and bias is not True
            if not is_plain(tensor) or (tensor is None and not optional):
                return False
            if name == 'bias' and bias is False and tensor is not None:
                return False
        for name, value in settings.items():
            if getattr(module, name) != value:
                return False
    return True


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its class was written to do: hooks, on it or on all
    modules, or another ``forward``, put into it or into its class."""
    own: dict[str, Any] = module.__dict__
    kind: Any = type(module)
    # A compiler warns of caches, and does without them.
    as_written = _as_written.__wrapped__ if is_recording() else _as_written
    return bool(
        'forward' in own
        or has_global_hooks()
        or own['_forward_hooks']
        or own['_forward_pre_hooks']
        or own['_backward_hooks']
        or own['_backward_pre_hooks']
        or not as_written(kind, getattr(kind, 'forward', None))
    )


def has_global_hooks() -> bool:
    """Whether there are hooks on all modules."""
    return any(_GLOBAL_HOOKS)


@functools.cache
def _as_written(kind: Any, forward: Any) -> bool:
    """Whether a class's ``forward`` comes from the module of the class; a replaced one does not."""
    home = next((base.__module__ for base in kind.__mro__ if 'forward' in base.__dict__), None)
    return getattr(forward, '__globals__', {}).get('__name__') == home


def _autocast_dtype(device: str) -> torch.dtype | None:
    """Autocast's dtype for a kind of device; None where it is off or the device is another one."""
    if device not in ('cpu', 'cuda'):
        return None
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # Before PyTorch 2.4 every kind of device had functions of its own.
    if device == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is on, else that of ``x``; float64 stays
    float64, as with autocast."""
    dtype = None if x.dtype == torch.float64 else _autocast_dtype(x.device.type)
    return x.dtype if dtype is None else dtype


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, means and small matrices: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of ``x``; none at all where autocast is off."""
    device = x.device.type
    is_on = _autocast_dtype(device) is not None
    return torch.autocast(device, enabled=False) if is_on else nullcontext()


def differentiated_again(*grads: Tensor) -> bool:
    """Whether a ``backward`` that was given ``grads`` must use :func:`gradients`: for derivatives
    of its own, or for several gradients at once."""
    if torch.is_grad_enabled() or standard_operators_only(*grads):
        return True
    # There is no way to ask for is_grads_batched=True but this.
    level = torch._C._vmapmode_increment_nesting()
    torch._C._vmapmode_decrement_nesting()
    return level > 1


def gradients(
    plain: Callable[..., Tensor], inputs: Sequence[object], *grads: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``plain(*inputs)``, from ``grads`` of its outputs, for each input that needs
    one; differentiable again, which a gradient that is written by hand is not."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: of two inputs one may be made from the other, outside this function.
        inputs = [t.view_as(t) if isinstance(t, Tensor) else t for t in inputs]
        outputs = plain(*inputs)
    wanted = {i: t for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad}
    found = torch.autograd.grad(
        outputs, [*wanted.values()], grads, create_graph=again, allow_unused=True
    )
    by_input = dict(zip(wanted, found, strict=True))
    return tuple(by_input.get(i) for i in range(len(inputs)))


def chunks(batch: int, length: int, most: int) -> list[tuple[slice, slice]]:
    """``batch`` images of ``length`` rows in chunks of at most ``most`` rows: of whole images, or
    of one image."""
    most = max(1, most)
    images = max(1, most // length)
    rows = -(-length // -(-length // most))  # equal parts rather than full ones and a small rest
    return [
        (slice(i, min(i + images, batch)), slice(first, min(first + rows, length)))
        for i in range(0, batch, images)
        for first in range(0, length, rows)
    ]
