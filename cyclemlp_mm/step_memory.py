"""Memory of a training step, counted on tensors without numbers: no GPU, data or weights needed.

PyTorch's fake tensors go through the forward pass, the backward pass and the optimiser, and a mode
adds up the storages that are alive. Where a size depends on numbers, as that of ``x[x > 0]``, it is
taken as the largest possible one: a two-stage detector trains on as many objects as its sampler
takes. What PyTorch's operators allocate inside, and CUDA itself, is not counted.
"""

import copy
import importlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from cyclemlp_mm.analysis import quiet
from cyclemlp_mm.checks import model_errors
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.ops.recording import measured_as

#: Objects of an image: COCO 2017 has 860 001 on 118 287 images.
OBJECTS = 7
#: Functions that autocast computes in float32 on a GPU: "CUDA Ops that can autocast to float32" of
#: PyTorch's documentation, and resizing.
_FLOAT32_ON_GPU = frozenset(
    """
    __pow__ __rdiv__ __rpow__ __rtruediv__ acos asin binary_cross_entropy_with_logits cdist cosh
    cosine_embedding_loss cosine_similarity cross_entropy cumprod cumsum dist erfinv exp expm1
    group_norm hinge_embedding_loss interpolate kl_div l1_loss layer_norm log log10 log1p log2
    log_softmax margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss norm
    normalize pdist poisson_nll_loss pow prod reciprocal renorm rsqrt sinh smooth_l1_loss
    soft_margin_loss softmax softmin softplus sum tan triplet_margin_loss
    """.split()  # noqa: SIM905
)
_aten = torch.ops.aten


class StepMemory(NamedTuple):
    """Bytes by what they hold, at the moment of a training step when their sum is largest."""

    weights: int  # and buffers
    gradients: int  # of the weights
    optimizer: int
    activations: int  # and all else: the batch, gradients of activations, temporary tensors

    @property
    def total(self) -> int:
        """The peak."""
        return sum(self)


def measure_step(
    cfg: Config, batch_size: int, size: tuple[int, int], amp: bool = False, device: str = 'cuda'
) -> StepMemory:
    """Memory of one training step of a config on one device; nothing is computed.

    Args:
        cfg (Config): Of a detector, segmentor or classifier; unchanged. Weights are not loaded.
        batch_size (int): Images per step.
        size (tuple[int, int]): Height and width of the images, before the data preprocessor.
        amp (bool): Automatic mixed precision. Default: False.
        device (str): 'cuda' or 'cpu', whose forms of operators are taken. Default: 'cuda'.

    Raises:
        UserError: The model cannot be built, or has an operator whose result's size depends on
            numbers and cannot be assumed.
    """
    from cyclemlp_mm.engine import require_toolbox

    scope, on_gpu = require_toolbox(cfg), device == 'cuda'
    settings = Config(cfg.to_dict())
    settings.model.backbone.init_cfg = None
    settings.model.pop('pretrained', None)
    live = _LiveStorages()
    with ExitStack() as stack:
        for context in (quiet(scope), FakeTensorMode(allow_non_fake_inputs=True), live):
            stack.enter_context(context)
        stack.enter_context(measured_as(device, FakeTensor))
        stack.enter_context(mock.patch.object(FakeTensor, '__deepcopy__', _copy, create=True))
        norm = partial(_batch_norm, nn.functional.batch_norm)
        stack.enter_context(mock.patch.object(nn.functional, 'batch_norm', norm))
        with model_errors(cfg.get('filename') or 'CONFIG'):
            model = MODELS.build(settings.model).train()
        optimizer = build_optim_wrapper(model, settings.optim_wrapper).optimizer
        parts = [model]
        if 'EMAHook' in str(settings.get('custom_hooks')):
            parts.append(copy.deepcopy(model))  # the average
        if 'teacher' in settings.model:  # which is no part of the model
            parts.append(model.teacher)
            model.teacher.is_loaded = True
        if scope == 'mmdet':
            stack.enter_context(_without_kernels(model, on_gpu))
        for tensor in (t for part in parts for t in (*part.parameters(), *part.buffers())):
            live.move(tensor, 'weights')
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
                parameter.register_post_accumulate_grad_hook(
                    lambda parameter: live.move(parameter.grad, 'gradients')
                )
                live.move(parameter.grad, 'gradients')
        for group in optimizer.param_groups:
            if on_gpu and 'foreach' in group:
                group['foreach'] = True  # PyTorch's default there
        optimizer.step()
        tree_map_only(Tensor, lambda t: live.move(t, 'optimizer'), dict(optimizer.state))
        if settings.optim_wrapper.get('accumulative_counts', 1) == 1:
            optimizer.zero_grad()
        live.peak = Counter()
        _train_step(model, make_batch(scope, batch_size, size), amp, on_gpu)
        optimizer.step()
    return StepMemory(*(live.peak[kind] for kind in StepMemory._fields))


def _train_step(model: Any, batch: dict, amp: bool, on_gpu: bool) -> None:
    """Forward and backward pass, as of mmengine's ``train_step``."""
    with _Float32OnGpu() if amp and on_gpu else nullcontext():
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            data = model.data_preprocessor(batch, True)
            losses = model(**data, mode='loss')
            loss, _ = model.parse_losses(losses)
        # As checkpointing uses autocast again: loss.backward() would suspend the mode.
        torch.autograd.backward(get_gradient_edge(loss))


def make_batch(scope: str, batch_size: int, size: tuple[int, int]) -> dict:
    """A batch of a toolbox ('mmdet', 'mmseg' or 'mmpretrain') as its data loader gives it: images,
    uint8 (3, H, W), and labels; for 'mmdet' :data:`OBJECTS` boxes and masks of an image."""
    return dict(
        inputs=[torch.zeros(3, *size, dtype=torch.uint8) for _ in range(batch_size)],
        data_samples=[_sample(scope, size) for _ in range(batch_size)],
    )


def _sample(scope: str, size: tuple[int, int]) -> object:
    shapes = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        labels = torch.zeros(1, *size, dtype=torch.int64)
        return SegDataSample(metainfo=shapes, gt_sem_seg=PixelData(data=labels))
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return DataSample(metainfo=shapes).set_gt_label(0)
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    masks = BitmapMasks(np.zeros((OBJECTS, *size), np.uint8), *size)
    labels = torch.zeros(OBJECTS, dtype=torch.int64)
    objects = InstanceData(bboxes=torch.zeros(OBJECTS, 4), labels=labels, masks=masks)
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=labels[:0])
    return DetDataSample(metainfo=shapes, gt_instances=objects, ignored_instances=nothing)


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that are alive by kind, in ``now``, and keeps the largest sum's parts,
    in ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.now, self.peak = WeakIdKeyDictionary(), Counter(), Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        try:
            result = func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException):
            result = _assumed(func, *args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, result)
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.kinds:
            self.kinds[storage] = kind = ['activations']  # changed by move
            self.now['activations'] += storage.nbytes()
            weakref.finalize(storage, self._remove, kind, storage.nbytes())

    def _remove(self, kind: list[str], size: int) -> None:
        self.now[kind[0]] -= size

    def move(self, tensor: Tensor, target: str) -> None:
        """Count a tensor's storage as another kind."""
        storage = tensor.untyped_storage()
        kind = self.kinds.get(storage)
        if kind is not None and kind[0] != target:
            self.now[kind[0]] -= storage.nbytes()
            self.now[target] += storage.nbytes()
            kind[0] = target


class _Float32OnGpu(TorchFunctionMode):
    """Autocast's list of a GPU, for autocast on a CPU, whose list is shorter."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        if name not in _FLOAT32_ON_GPU or not torch.is_autocast_enabled('cpu'):
            return func(*args, **kwargs)

        def cast(value: object) -> object:
            low = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
            return value.float() if low else value

        args, kwargs = tree_map(cast, (args, kwargs))
        with torch.autocast('cpu', enabled=False):
            return func(*args, **kwargs)


def _assumed(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What an operator may return whose result depends on numbers: conditions are true."""
    x = args[0]
    if func == _aten._local_scalar_dense.default:
        return {torch.bool: True}.get(x.dtype, 1.0 if x.dtype.is_floating_point else 1)
    if func == _aten.nonzero.default:
        return x.new_empty((x.numel(), x.dim()), dtype=torch.int64)
    if func == _aten._unique2.default:
        number = x.new_empty(x.numel(), dtype=torch.int64)
        return x.new_empty(x.numel()), number, number.clone()
    if func == _aten.masked_select.default:
        return x.new_empty(torch.broadcast_shapes(x.shape, args[1].shape).numel())
    if 'index' in str(func):  # a mask among the indices
        indices: list[Tensor | None] = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                places = index.new_empty(index.numel(), dtype=torch.int64)
                indices += [places] * index.dim()
            else:
                indices.append(index)
        return func(x, indices, *args[2:], **kwargs)
    raise UserError(
        f'cannot estimate this model: the size of a result of {func} depends on numbers. Train a '
        'few steps and read the memory in the log instead'
    )


def _copy(tensor: Tensor, memo: dict) -> Tensor:
    """PyTorch's own copy of a fake tensor reads memory that is not there, and crashes later."""
    if id(tensor) not in memo:
        found = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(found, tensor.requires_grad) if is_parameter else found
    return memo[id(tensor)]


def _batch_norm(
    batch_norm: Callable[..., Tensor],
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *others: Any,
    **options: Any,
) -> Tensor:
    """Also of one value per channel, as SyncBN has on several GPUs."""
    training = training and x.numel() > x.shape[1]
    return batch_norm(x, mean, var, weight, bias, training, *others, **options)


class _Nothing:
    """In place of mmcv's compiled operators, which write into tensors that they are given."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def _without_kernels(model: nn.Module, on_gpu: bool) -> Iterator[None]:
    """Let a detector run without numbers: its own proposals and targets of masks by their sizes."""
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.losses import FocalLoss
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    for module in model.modules():
        if isinstance(module, RPNHead):
            module.predict_by_feat = _proposals
        elif isinstance(module, BBoxHead):
            module.refine_bboxes = _refined
        elif isinstance(module, FCNMaskHead):
            module.get_targets = _mask_targets
        elif isinstance(module, FocalLoss) and module.use_sigmoid and on_gpu:
            module.forward = partial(_focal_loss_of_gpu, module)
    with ExitStack() as stack:
        for name in ('roi_align', 'focal_loss'):  # their functions have the modules' names
            module = importlib.import_module(f'mmcv.ops.{name}')
            stack.enter_context(mock.patch.object(module, 'ext_module', _Nothing()))
        yield


def _proposals(scores: list[Tensor], *others: Any, cfg: Any = None, **kwargs: Any) -> list:
    """As many as an RPN keeps, for each image."""
    from mmengine.structures import InstanceData

    number = cfg.max_per_img
    return [
        InstanceData(
            bboxes=scores[0].new_empty(number, 4, dtype=torch.float32),
            scores=scores[0].new_empty(number, dtype=torch.float32),
            labels=scores[0].new_empty(number, dtype=torch.int64),
        )
        for _ in range(len(scores[0]))
    ]


def _refined(sampling_results: list, *others: Any) -> list:
    """The regions of a cascade's next stage, for each image: as many as of this stage."""
    from mmengine.structures import InstanceData

    return [InstanceData(bboxes=x.priors) for x in sampling_results]


def _mask_targets(sampling_results: list, batch_gt_instances: list, rcnn_train_cfg: Any) -> Tensor:
    """A mask for each sampled object."""
    number, side = sum(len(x.pos_priors) for x in sampling_results), rcnn_train_cfg.mask_size
    shape = (side, side) if isinstance(side, int) else tuple(side)
    return sampling_results[0].pos_priors.new_empty(number, *shape)


def _focal_loss_of_gpu(
    loss: Any,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    avg_factor: int | None = None,
    reduction_override: str | None = None,
) -> Tensor:
    """mmdet's FocalLoss on a GPU, where it is one operator that keeps its input alone."""
    from mmdet.models.losses.focal_loss import sigmoid_focal_loss

    how = reduction_override or loss.reduction
    options = dict(gamma=loss.gamma, alpha=loss.alpha, reduction=how, avg_factor=avg_factor)
    return loss.loss_weight * sigmoid_focal_loss(pred, target, weight, **options)
