"""Multiply-adds of a forward pass, operator by operator; what is not known is not counted as zero.

PyTorch's own ``FlopCounterMode`` leaves out, silently, every operator that it has no formula for,
``deform_conv2d`` among them. Here each operator either has a formula, or is on the list of those
that do no multiply-adds worth counting, or stops the count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from cyclemlp_mm.errors import UserError

#: PyTorch's formulas by operator; those of 2.1 take shapes.
_FORMULAS = getattr(flop_counter, 'flop_registry', None) or flop_counter.flop_mapping

#: Operators that count as nothing, beside views and pointwise ones: they move or make numbers, or
#: cost a few operations per number (norms, softmax, pooling, resizing), as is usual in papers.
FREE = frozenset(
    """
    _adaptive_avg_pool2d _native_batch_norm_legit_no_training _softmax _to_copy _unsafe_view
    adaptive_max_pool2d all amax amin any argmax argmin as_strided as_strided_ avg_pool2d cat
    constant_pad_nd copy_ cudnn_batch_norm cumsum empty_like fill_ flip full_like gather hardswish
    hardswish_ index
    index_select log_softmax max max_pool2d_with_indices mean min native_batch_norm
    native_group_norm native_layer_norm new_empty new_empty_strided new_full new_ones new_zeros
    ones_like reflection_pad2d repeat replication_pad2d roll stack sum upsample_bicubic2d
    upsample_bilinear2d upsample_nearest2d var_mean zero_ zeros_like
    """.split()  # noqa: SIM905
)


class UncountedOperatorError(UserError):
    """The count met an operator without a formula."""


class MultiplyAdds(TorchDispatchMode):
    """Adds up the multiply-adds of all that runs inside the ``with`` block.

    Attributes:
        total (int): Multiply-adds so far.

    Raises:
        UncountedOperatorError: An operator is neither known to count nor known not to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not _is_known(func) and _takes_a_tensor(args, kwargs):
            raise _uncounted(func)
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _FORMULAS:
            self.total += _flops(_FORMULAS[packet], args, kwargs or {}, result) // 2
        elif str(packet) == 'torchvision.deform_conv2d':
            _, weight = args[:2]
            self.total += result.numel() * weight[0].numel()
        return result


def _flops(formula: Callable, args: tuple, kwargs: dict, result: object) -> int:
    if hasattr(flop_counter, 'flop_registry'):
        return formula(*args, **kwargs, out_val=result)
    args, kwargs, out_shape = tree_map(flop_counter.get_shape, (args, kwargs, result))
    return formula(*args, **kwargs, out_shape=out_shape)


def _is_known(func: torch._ops.OpOverload) -> bool:
    packet = func._overloadpacket
    if packet in _FORMULAS or func.is_view or torch.Tag.pointwise in func.tags:
        return True
    namespace, name = str(packet).split('.')
    return (namespace in ('aten', 'prims') and name in FREE) or (
        str(packet) == 'torchvision.deform_conv2d'
    )


def _takes_a_tensor(args: tuple, kwargs: dict | None) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_flatten((args, kwargs))[0])


def _uncounted(func: torch._ops.OpOverload) -> UncountedOperatorError:
    return UncountedOperatorError(
        f'cannot count the operator {func._overloadpacket}: it has no formula, and counting it as '
        'nothing would be wrong. Give it one in cyclemlp_mm/analysis/counting.py, or, if it does '
        'no multiply-adds, add it to FREE there'
    )


def multiply_adds(call: Callable[[], object]) -> int:
    """Multiply-adds of a call.

    Args:
        call (Callable): Takes no argument. On tensors of the meta device nothing is computed.

    Raises:
        UncountedOperatorError: See :class:`MultiplyAdds`.
    """
    with MultiplyAdds() as counter, torch.no_grad():
        call()
    return counter.total


def check_visible(model: nn.Module) -> None:
    """Refuse modules whose operators do not go through PyTorch's dispatcher, where none is seen.

    Raises:
        UncountedOperatorError: mmcv's compiled ops are among the modules.
    """
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith('mmcv.ops'):
            raise UncountedOperatorError(
                f'cannot count {kind.__module__}.{kind.__name__} ({name}): the operators that mmcv '
                'compiles are invisible to PyTorch, and would count as nothing'
            )


def backbone_multiply_adds(backbone: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Multiply-adds of one forward pass of a backbone, without computing it.

    Args:
        backbone (nn.Module): On any device; left as it is, if it is on the meta device already.
        shape (tuple[int]): Of the images, (B, 3, H, W).
    """
    check_visible(backbone)
    image: Tensor = torch.empty(shape, device='meta')
    return multiply_adds(lambda: backbone(image))
