"""Deploy mode: a trained model in the form with the least to compute, with the same outputs."""

from collections import Counter

from torch import nn

from cyclemlp_mm.ops.untouched import listened_to

from .foldable import Foldable
from .norms import folded


def to_deploy(model: nn.Module) -> nn.Module:
    """Fold what can be folded, in place, for inference only.

    - RepMLP: norm and local perceptron into the partition perceptron's Linear.
    - MPViT: BatchNorms into the convolutions ahead of them.
    - CycleMLP without reweighting (T, S, B): branches and projection of each mixer into one matrix.
      With reweighting the matrix depends on the image, and the mixer makes it by itself.
    - Necks and heads: mmcv's ``ConvModule``, BatchNorm into convolution.

    Weights of a CycleMLP that change afterwards take effect (its matrix is made again), unless they
    are changed through ``.data``, which PyTorch does not count: fold again then. The other families
    have no weights left but the folded ones.

    State dicts change but for CycleMLP's, so load the checkpoint first; one saved afterwards fits a
    model that went through this itself. Outputs agree to rounding. A second call changes nothing.

    Args:
        model (nn.Module): A backbone, or a detector, segmentor or classifier.

    Returns:
        nn.Module: The same object, in eval mode.
    """
    model.eval()
    modules = list(model.modules())
    conv_modules = [m for m in modules if _is_conv_module(m)]
    shared = Counter(id(m.conv) for m in conv_modules)
    for module in modules:
        if isinstance(module, Foldable):
            module.fold()
    for module in conv_modules:
        if shared[id(module.conv)] == 1:  # else each user has a norm of its own
            _fold_conv_module(module)
    return model


def _is_conv_module(module: nn.Module) -> bool:
    # By name: this package is used without mmcv, too.
    kind = type(module)
    return kind.__name__ == 'ConvModule' and kind.__module__.startswith('mmcv.')


def _fold_conv_module(module: nn.Module) -> None:
    conv_then_norm = tuple(module.order[:2]) == ('conv', 'norm')
    if not (module.with_norm and conv_then_norm):
        return
    # Others do more to their weight, as do hooks (pruning, spectral norm).
    if type(module.conv).__name__ != 'Conv2d' or listened_to(module.conv):
        return
    weight, bias = folded(module.conv, module.norm)
    if weight is None or bias is None:  # no bias: the norm is an Identity
        return
    module.conv.weight = nn.Parameter(weight.detach())
    module.conv.bias = nn.Parameter(bias.detach())
    setattr(module, module.norm_name, nn.Identity())
    module.with_norm = False
