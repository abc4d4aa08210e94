"""CycleMLP backbone.

Paper: CycleMLP: A MLP-like Architecture for Dense Prediction, ICLR 2022, arXiv 2107.10224.
Published code and weights: github.com/ShoufaChen/CycleMLP (MIT); rewritten here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from cyclemlp_mm.ops import KERNEL_H, KERNEL_W, CycleFC, MixerWeights, ReweightWeights, cycle_mixer
from cyclemlp_mm.ops.cycle_mixer import apply_matrix, check_backend, fixed_matrix, softmax_branches
from cyclemlp_mm.ops.recording import (
    has_global_hooks,
    is_plain_layer,
    needs_grad,
    standard_operators_only,
)
from cyclemlp_mm.weights import CYCLEMLP_FORMAT

from .arch import check_bool, check_int, check_per_stage, check_some_of, resolve_arch
from .conv_norm import Foldable
from .dense_backbone import DenseBackbone
from .layers import (
    ConvDownsample,
    DropPath,
    Mlp,
    PatchMerging,
    drop_path_rates,
    is_idle,
    is_plain_mlp,
    residual_mlp,
)

_DOWNSAMPLES: dict[str, Callable[[int, int], nn.Module]] = {
    'conv': partial(ConvDownsample, kernel_size=3, stride=2, padding=1),
    'patch_merging': PatchMerging,
}
#: Branches of the mixer, in the order of their weights.
BRANCHES = ('h', 'w', 'c')


class CycleMixer(Foldable, nn.Module):
    """Token mixer: two CycleFC branches and a Linear one, weighted per image, projected.

    Args:
        channels (int): Width, C.
        reweight (bool): Weigh the branches by split attention; False sums them. Defaults to True.
        backend (str): See :func:`cyclemlp_mm.ops.cycle_mixer`; with another kernel or fewer
            branches, 'auto' or 'reference', which call the layers. Defaults to 'auto'.
        kernel_size (int): Pseudo-kernel k of the CycleFCs, (1, k) and (k, 1). Defaults to 3.
        branches (Sequence[str]): Those there are, of 'h', 'w' and 'c'. Defaults to all.
    """

    def __init__(
        self,
        channels: int,
        reweight: bool = True,
        backend: str = 'auto',
        kernel_size: int = 3,
        branches: Sequence[str] = BRANCHES,
    ) -> None:
        super().__init__()
        k, there = kernel_size, tuple(branches)
        self.channels = channels
        self.backend = check_backend(backend)
        self.mlp_c: Any = nn.Linear(channels, channels, bias=False) if 'c' in there else None
        self.sfc_h: Any = CycleFC(channels, channels, (1, k)) if 'h' in there else None
        self.sfc_w: Any = CycleFC(channels, channels, (k, 1)) if 'w' in there else None
        hidden, logits = channels // 4, len(there) * channels
        self.reweight = Mlp(channels, hidden, logits) if reweight else None
        self.proj = nn.Linear(channels, channels)
        #: The whole mixer's matrix in deploy mode; derived, so in no state dict.
        self.matrix: Tensor | None = None
        self._made_of: tuple = ()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, H, W, C) to the same shape; ``residual``, of that shape, is added.

        Raises:
            RuntimeError: The backend cannot run here, or not with layers replaced or hooked.
        """
        weights = self.own_weights()
        if weights is None:
            y = self._by_layers(x)
            return y if residual is None else residual + y
        if self._takes_matrix(x, weights):
            return apply_matrix(x, self._current_matrix(weights), residual)
        return cycle_mixer(x, weights, self.backend, residual)

    def fold(self) -> None:
        """Make the mixer's matrix, if no image changes it and no backend was asked for."""
        self.matrix = None
        weights = self.own_weights()
        if self.reweight is None and self.backend == 'auto' and weights is not None:
            self.matrix = self._current_matrix(weights)

    def train(self, mode: bool = True) -> CycleMixer:
        """Switch the mode; in training there is no matrix."""
        if mode:
            self.matrix = None
        return super().train(mode)

    def _takes_matrix(self, x: Tensor, weights: MixerWeights) -> bool:
        """Whether deploy mode's matrix may stand for the weights."""
        tensors = weights[:-1]
        if self.matrix is None or standard_operators_only(x, *tensors) or needs_grad(*tensors):
            return False
        return not any(t.is_inference() for t in tensors)  # their changes are not counted

    def _current_matrix(self, weights: MixerWeights) -> Tensor:
        """Deploy mode's matrix, made again if a weight was replaced, moved or changed in place."""
        tensors = weights[:-1]
        state = [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if self.matrix is None or state != self._made_of[0]:
            self.matrix = fixed_matrix(weights)
            self._made_of = state, tensors  # which live on, so that no other has their address
        return self.matrix

    def own_weights(self) -> MixerWeights | None:
        """The parameters, if the operator computes what the layers do; None for another kernel,
        fewer branches, and layers that were changed: these are called."""
        if not (
            is_plain_layer(nn.Linear, self.mlp_c, bias=False)
            and is_plain_layer(nn.Linear, self.proj)
            and is_plain_layer(CycleFC, self.sfc_h, kernel_size=KERNEL_H)
            and is_plain_layer(CycleFC, self.sfc_w, kernel_size=KERNEL_W)
            and (self.reweight is None or is_plain_mlp(self.reweight))
        ):
            return None
        w, shape = self.mixer_weights(), (self.channels, self.channels)
        squares = (w.weight_h, w.weight_w, w.weight_c, w.weight_proj)
        return w if all(square.shape == shape for square in squares) else None

    def _by_layers(self, x: Tensor) -> Tensor:
        """The mixer in the published order of operations, by calling its layers."""
        if self.backend not in ('auto', 'reference') and not has_global_hooks():
            raise RuntimeError(
                f'mixer_backend={self.backend!r} needs arch kernel_size 3, all branches and '
                "layers that were not replaced and have no hooks: take mixer_backend='auto'"
            )
        layers = (self.sfc_h, self.sfc_w, self.mlp_c)
        maps = [layer(x) for layer in layers if layer is not None]
        if self.reweight is None:
            return self.proj(reduce(torch.add, maps))
        a = softmax_branches(self.reweight(reduce(torch.add, maps).mean(dim=(1, 2))), len(maps))
        weighted = [y * weight[:, None, None, :] for y, weight in zip(maps, a)]
        return self.proj(reduce(torch.add, weighted))

    def mixer_weights(self) -> MixerWeights:
        """The parameters of all three branches, as the operator takes them."""
        h, w, c, proj, reweight = self.sfc_h, self.sfc_w, self.mlp_c, self.proj, None
        if self.reweight is not None:
            fc1, fc2 = self.reweight.fc1, self.reweight.fc2
            reweight = ReweightWeights(fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        shifted = (h.weight, h.bias, w.weight, w.bias)
        return MixerWeights(*shifted, c.weight, proj.weight, proj.bias, reweight)


class CycleBlock(nn.Module):
    """``x + mixer(LN(x))``, then ``x + mlp(LN(x))``, each dropped with probability ``drop_path`` in
    training. The MLP is ``mlp_ratio`` C wide; ``mixer`` are arguments of :class:`CycleMixer`."""

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float, *mixer: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = CycleMixer(channels, *mixer)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, channels * mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        normed = self.norm1(x)
        if is_idle(self.drop_path):
            x = self.mixer(normed, residual=x)
        else:
            x = x + self.drop_path(self.mixer(normed))
        del normed  # one map less while the MLP makes another
        return residual_mlp(x, self.norm2, self.mlp, self.drop_path)


@MODELS.register_module(force=True)  # in place of registration.py's function
class CycleMLP(DenseBackbone):
    """CycleMLP backbone (ICLR 2022, arXiv 2107.10224).

    ``t``, ``s`` and ``b`` have published weights but no published code; they are a reconstruction
    that meets the published sizes: branches summed instead of reweighted, and Swin's patch merging.

    Args:
        arch (str | dict): 'b1' to 'b5', 't', 's' or 'b', or a dict with exactly the keys

            - depths (Sequence[int]): Blocks of each stage.
            - widths (Sequence[int]): Channels of each stage.
            - mlp_ratios (Sequence[int]): Hidden over outer width of each stage's MLPs.
            - reweight (bool): Whether the branches are weighted by split attention.
            - downsample (str): 'conv' (3x3, stride 2) or 'patch_merging'.

            and, for ablations, maybe these, which published weights do not fit:

            - kernel_size (int): Pseudo-kernel of the CycleFCs, odd. Defaults to 3.
            - branches (Sequence[str]): Branches of the mixers, at least one of 'h', 'w' (CycleFCs
              along x and y) and 'c' (a Linear). Defaults to all.

        drop_path_rate (float): Stochastic depth of the last block, growing linearly from 0 over
            all blocks. Defaults to 0.0, as in the published dense models.
        out_norms (bool): One LayerNorm per returned level. Defaults to True.
        mixer_backend (str): How mixers are computed; the results are the same. 'auto' takes the
            fastest, see :func:`cyclemlp_mm.ops.cycle_mixer` for the others, which all but
            'reference' need the default kernel and branches. Defaults to 'auto'.

    ``in_channels``, ``out_indices``, ``frozen_stages``, ``with_cp``, ``init_cfg``, ``pretrained``:
    see :class:`~cyclemlp_mm.models.dense_backbone.DenseBackbone`. A published classifier's final
    norm becomes the last level's norm.

    Examples:
        >>> import torch
        >>> from mmengine.registry import MODELS
        >>> import cyclemlp_mm
        >>> backbone = MODELS.build(dict(type='CycleMLP', arch='b1'))
        >>> [tuple(level.shape) for level in backbone(torch.randn(1, 3, 224, 224))]
        [(1, 64, 56, 56), (1, 128, 28, 28), (1, 320, 14, 14), (1, 512, 7, 7)]
    """

    _BASE = dict(
        widths=(64, 128, 320, 512), mlp_ratios=(4, 4, 4, 4), reweight=True, downsample='conv'
    )
    _WIDE = dict(_BASE, widths=(96, 192, 384, 768))
    _SWIN_STYLE = dict(_WIDE, reweight=False, downsample='patch_merging')
    arch_zoo: ClassVar[Mapping[str, dict]] = {
        'b1': dict(_BASE, depths=(2, 2, 4, 2)),
        'b2': dict(_BASE, depths=(2, 3, 10, 3)),
        'b3': dict(_BASE, depths=(3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4)),
        'b4': dict(_BASE, depths=(3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4)),
        'b5': dict(_WIDE, depths=(3, 4, 24, 3)),
        't': dict(_SWIN_STYLE, depths=(2, 2, 6, 2)),
        's': dict(_SWIN_STYLE, depths=(2, 2, 18, 2)),
        'b': dict(_SWIN_STYLE, depths=(2, 2, 18, 2), widths=(128, 256, 512, 1024)),
    }
    published_format = CYCLEMLP_FORMAT
    stem_border = 1

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Truncated normal (std 0.02) Linears, as CycleFC does by itself; convolutions keep
        PyTorch's default, as published."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def __init__(
        self,
        arch: str | Mapping = 'b1',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        out_norms: bool = True,
        mixer_backend: str = 'auto',
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        usual = dict(kernel_size=3, branches=BRANCHES)
        settings = resolve_arch(arch, self.arch_zoo, 'CycleMLP', usual)
        check_per_stage(settings, ('depths', 'widths', 'mlp_ratios'))
        depths, widths = settings['depths'], settings['widths']
        reweight = check_bool('arch reweight', settings['reweight'])
        if reweight and any(width % 4 for width in widths):
            raise ValueError(f'arch widths must be multiples of 4 with reweight, but got {widths}')
        kernel_size = check_int('arch kernel_size', settings['kernel_size'], odd=True)
        branches = check_some_of('arch branches', settings['branches'], BRANCHES)
        downsample = _DOWNSAMPLES.get(str(settings['downsample']))
        if downsample is None:
            given = settings['downsample']
            raise ValueError(f'arch downsample must be one of {[*_DOWNSAMPLES]}, but got {given!r}')
        super().__init__(
            len(depths), in_channels, out_indices, frozen_stages, with_cp, init_cfg, pretrained
        )
        self.depths = depths
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stem = ConvDownsample(in_channels, widths[0], kernel_size=7, stride=4, padding=2)
        self.downsamples = nn.ModuleList([nn.Identity()])
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            if i:
                self.downsamples.append(downsample(widths[i - 1], widths[i]))
            block = partial(CycleBlock, widths[i], settings['mlp_ratios'][i])
            mixer = reweight, mixer_backend, kernel_size, branches
            blocks = (block(next(rates), *mixer) for _ in range(depths[i]))
            self.stages.append(nn.ModuleList(blocks))
        self.apply(self.init_layer)
        self.finish(widths, [4 * 2**i for i in range(len(depths))], out_norms)
