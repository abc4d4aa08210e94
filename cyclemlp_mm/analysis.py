"""Parameters and multiply-adds of models, operator by operator, without computing anything.

PyTorch's own ``FlopCounterMode`` leaves out, silently, operators without a formula, such as
``deform_conv2d``. Here an operator that has none and is not listed as free stops the count.
"""

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

#: Operators that count as nothing, as in papers: they move numbers, or cost a few operations per
#: number (norms, softmax, pooling, resizing).
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

#: Height and width that a model is counted at by default: ImageNet's, COCO's 800 px in a padded
#: 5:8 frame, ADE20K's crop.
SIZES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 512)}
_HEADS = ('rpn_head', 'bbox_head', 'roi_head', 'decode_head', 'auxiliary_head', 'head')


class UncountedOperatorError(UserError):
    """An operator is neither known to count nor known not to."""


class MultiplyAdds(TorchDispatchMode):
    """Adds up the multiply-adds of all that runs inside the ``with`` block, in ``total``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        namespace, _, name = str(packet).partition('.')
        is_free = func.is_view or torch.Tag.pointwise in func.tags
        is_free = is_free or (namespace in ('aten', 'prims') and name in FREE)
        is_known = is_free or packet in _FORMULAS or str(packet) == _DEFORM_CONV
        if not is_known and any(isinstance(x, Tensor) for x in tree_flatten((args, kwargs))[0]):
            fix = 'give it a formula in cyclemlp_mm/analysis.py, or add it to FREE there'
            raise UncountedOperatorError(f'cannot count the operator {packet}: {fix}')
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


def multiply_adds(call: Callable[[], object]) -> int:
    """Multiply-adds of a call; on tensors of the meta device nothing is computed."""
    with MultiplyAdds() as counter, torch.no_grad():
        call()
    return counter.total


def check_visible(model: nn.Module) -> None:
    """Raise UncountedOperatorError for mmcv's compiled ops, which PyTorch's dispatcher misses."""
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith('mmcv.ops'):
            what = f'cannot count {kind.__module__}.{kind.__name__} ({name})'
            raise UncountedOperatorError(f"{what}: mmcv's operators are invisible to PyTorch")


def backbone_multiply_adds(backbone: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Multiply-adds of a backbone on the meta device, for images (B, 3, H, W)."""
    check_visible(backbone)
    image = torch.empty(shape, device='meta')
    return multiply_adds(lambda: backbone(image))


@contextmanager
def quiet(scope: str) -> Iterator[None]:
    """A toolbox's scope, without what models log and warn about training when they are built."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def build_on_meta(cfg: Config) -> nn.Module:
    """The config's model on the meta device, in eval mode: shapes, no numbers."""
    from cyclemlp_mm.engine import require_toolbox

    scope, settings = require_toolbox(cfg), Config(cfg.model.to_dict())
    settings.backbone.init_cfg = None
    settings.pop('pretrained', None)
    with torch.device('meta'), quiet(scope):
        return MODELS.build(settings).eval()


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, without those of a teacher."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith('teacher.'))


def count_parts(model: Any, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of one image (height and width) by name of the part.

    Two-stage detectors count ``test_cfg.rpn.max_per_img`` proposals in the box head and
    ``test_cfg.rcnn.max_per_img`` detections in the mask head, as many as inference may meet. What
    picks boxes, and a segmentor's auxiliary head, which inference does not run, count nothing.
    Raises a UserError for an unknown part, or an operator that cannot be counted.
    """
    from cyclemlp_mm.export.parts import image_channels

    known = {'data_preprocessor', 'backbone', 'neck', 'teacher', 'distillation_loss', *_HEADS}
    strange = [name for name, _ in model.named_children() if name not in known]
    if strange or not hasattr(model, 'backbone'):
        what = f'{type(model).__name__} cannot be counted: it has {strange or "no backbone"}'
        raise UserError(f'{what}, and only {", ".join(sorted(known))} are known')
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
            numbers = dict(bbox=model.test_cfg.rpn.max_per_img)
            if head.with_mask:
                numbers['mask'] = model.test_cfg.rcnn.max_per_img
            for kind, number in numbers.items():
                extractors = getattr(head, f'{kind}_roi_extractor')
                heads = getattr(head, f'{kind}_head')
                is_cascade = isinstance(heads, nn.ModuleList)  # all stages see all regions
                stages = list(zip(extractors, heads) if is_cascade else [(extractors, heads)])
                for i, (extractor, stage) in enumerate(stages):
                    shape = number, extractor.out_channels, *extractor.roi_layers[0].output_size
                    regions = torch.empty(shape, device='meta')
                    run(f'roi_head.{kind}_head' + f'.{i}' * is_cascade, stage, regions)
        elif name != 'auxiliary_head' and head is not None:
            run(name, head, features)
    return counts
