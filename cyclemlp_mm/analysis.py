"""Parameters and multiply-adds of models, operator by operator, without computing anything.

PyTorch's own ``FlopCounterMode`` leaves out, silently, every operator that it has no formula for,
``deform_conv2d`` among them. Here each operator either has a formula, or is on the list of those
that do no multiply-adds worth counting, or stops the count.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from cyclemlp_mm.errors import UserError

#: PyTorch's formulas by operator; those of 2.1 take shapes.
_FORMULAS = getattr(flop_counter, 'flop_registry', None) or vars(flop_counter)['flop_mapping']
_DEFORM_CONV = 'torchvision.deform_conv2d'

#: Operators that count as nothing, like views and pointwise ones: they move or make numbers, or
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

#: Height and width that a model is counted at, unless told: ImageNet's, COCO's 800 px in a padded
#: 5:8 frame, ADE20K's crop.
SIZES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 512)}
_HEADS = ('rpn_head', 'bbox_head', 'roi_head', 'decode_head', 'auxiliary_head', 'head')


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

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        takes_a_tensor = any(isinstance(leaf, Tensor) for leaf in tree_flatten((args, kwargs))[0])
        if not _is_known(func) and takes_a_tensor:
            raise UncountedOperatorError(
                f'cannot count the operator {packet}: it has no formula, and counting it as '
                'nothing would be wrong. Give it one in cyclemlp_mm/analysis.py, or, if it does '
                'no multiply-adds, add it to FREE there'
            )
        result = func(*args, **kwargs)
        if packet in _FORMULAS:
            self.total += _flops(_FORMULAS[packet], args, kwargs, result) // 2
        elif str(packet) == _DEFORM_CONV:
            self.total += result.numel() * args[1][0].numel()  # the weight
        return result


def _flops(formula: Callable, args: tuple, kwargs: dict, result: object) -> int:
    if hasattr(flop_counter, 'flop_registry'):
        return formula(*args, **kwargs, out_val=result)
    args, kwargs, out_shape = tree_map(flop_counter.get_shape, (args, kwargs, result))
    return formula(*args, **kwargs, out_shape=out_shape)


def _is_known(func: Any) -> bool:
    packet = func._overloadpacket
    if packet in _FORMULAS or func.is_view or torch.Tag.pointwise in func.tags:
        return True
    namespace, name = str(packet).split('.')
    return (namespace in ('aten', 'prims') and name in FREE) or str(packet) == _DEFORM_CONV


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
    """Reject modules whose operators do not go through PyTorch's dispatcher, where none is seen.

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
    image = torch.empty(shape, device='meta')
    return multiply_adds(lambda: backbone(image))


def build_on_meta(cfg: Config) -> nn.Module:
    """The config's model on the meta device, in eval mode: shapes, no numbers, no weights loaded.

    Args:
        cfg (Config): Of any of the toolboxes.
    """
    from cyclemlp_mm.engine import require_toolbox

    scope = require_toolbox(cfg)
    settings = Config(cfg.model.to_dict())
    settings.backbone.init_cfg = None
    settings.pop('pretrained', None)
    with torch.device('meta'), DefaultScope.overwrite_default_scope(scope), _quiet():
        return MODELS.build(settings).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what models log about losses and training when they are built."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            logger.setLevel(level)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, without those of a teacher."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith('teacher.'))


def count_parts(model: Any, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of one image's inference, part by part.

    Two-stage detectors count ``test_cfg.rpn.max_per_img`` proposals in the box head and
    ``test_cfg.rcnn.max_per_img`` detections in the mask head, as many as inference may meet. What
    picks boxes, and a segmentor's auxiliary head, which inference does not run, count nothing.

    Args:
        model (nn.Module): From :func:`build_on_meta`.
        size (tuple[int, int]): Height and width.

    Returns:
        dict[str, int]: Multiply-adds by name of the part.

    Raises:
        UserError: The model is made of parts that are not known here.
        UncountedOperatorError: An operator cannot be counted.
    """
    from cyclemlp_mm.export.parts import image_channels

    known = {'data_preprocessor', 'backbone', 'neck', 'teacher', 'distillation_loss', *_HEADS}
    strange = [name for name, _ in model.named_children() if name not in known]
    if strange or not hasattr(model, 'backbone'):
        raise UserError(
            f'{type(model).__name__} cannot be counted: it has '
            f'{", ".join(strange) or "no backbone"}, and only {", ".join(sorted(known))} are known'
        )
    counts: dict[str, int] = {}

    def run(name: str, module: nn.Module, given: Any) -> Any:
        check_visible(module)
        results: list[Any] = []
        counts[name] = multiply_adds(lambda: results.append(module(given)))
        return results[0]

    features = torch.empty(1, image_channels(model.backbone), *size, device='meta')
    for name in ('backbone', 'neck'):
        if getattr(model, name, None) is not None:
            features = run(name, getattr(model, name), features)
    for name in _HEADS:
        head = getattr(model, name, None)
        if name == 'roi_head' and head is not None:
            for kind, number in _roi_heads(model).items():
                extractor = getattr(head, f'{kind}_roi_extractor')
                shape = number, extractor.out_channels, *extractor.roi_layers[0].output_size
                given = torch.empty(shape, device='meta')
                run(f'roi_head.{kind}_head', getattr(head, f'{kind}_head'), given)
        elif name != 'auxiliary_head' and head is not None:
            run(name, head, features)
    return counts


def _roi_heads(detector: Any) -> dict[str, int]:
    """The heads on regions, with how many they get."""
    masks = {'mask': detector.test_cfg.rcnn.max_per_img} if detector.roi_head.with_mask else {}
    return {'bbox': detector.test_cfg.rpn.max_per_img, **masks}
