"""MPViT backbone.

Paper: MPViT: Multi-Path Vision Transformer for Dense Prediction, CVPR 2022, arXiv 2112.11010.
Written from the paper and a description of the published state dicts; the published code (GPL 3.0)
was not looked at, and the published weights come under their own terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from cyclemlp_mm.ops import factor_attention
from cyclemlp_mm.weights import MPVIT_FORMAT

from .arch import check_int, check_per_stage, resolve_arch
from .conv_norm import ConvNorm
from .dense_backbone import DenseBackbone
from .layers import DropPath, Mlp, drop_path_rates, is_idle, residual_mlp, seen_as_nchw

#: Attention heads everywhere, and how the kernels of the relative position encoding share them.
HEADS = 8
KERNEL_HEADS = {3: 2, 5: 3, 7: 3}


class EncoderLayer(nn.Module):
    """Position encoding, attention and MLP of a path, each with a residual (paper, Sec. 3.2). The
    path's layers share the convolutions of both position encodings."""

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, mlp_ratio * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, position: nn.Conv2d, relative: Sequence[nn.Conv2d]) -> Tensor:
        """(B, H, W, C) to the same shape; ``position`` is a depthwise convolution of the map,
        ``relative`` are those of v."""
        x = x + _depthwise(x, position)
        attention = (self.norm1, self.qkv, self.proj, relative, HEADS)
        if is_idle(self.drop_path):
            x = factor_attention(x, *attention)
        else:
            x = x + self.drop_path(factor_attention(x, *attention, residual=False))
        return residual_mlp(x, self.norm2, self.mlp, self.drop_path)


class PathEncoder(nn.Module):
    """Encoder layers over the tokens of one path, a stochastic depth of ``drop_paths`` each."""

    def __init__(self, channels: int, mlp_ratio: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.relative = nn.ModuleList()
        for side, heads in KERNEL_HEADS.items():
            part = channels // HEADS * heads
            self.relative.append(nn.Conv2d(part, part, side, padding=side // 2, groups=part))
        self.layers = nn.ModuleList(EncoderLayer(channels, mlp_ratio, d) for d in drop_paths)

    def forward(self, x: Tensor, run_block: Callable[..., Tensor]) -> Tensor:
        """(B, H, W, C) to the same shape; each layer is run by ``run_block``."""
        for layer in self.layers:
            x = run_block(layer, x, self.position, self.relative)
        return x


class PatchEmbedding(nn.Module):
    """Depthwise 3x3, pointwise, norm and Hardswish: one link of a stage's chain (Sec. 3.1)."""

    def __init__(self, channels: int, stride: int, norm_cfg: dict | None) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.pointwise = ConvNorm(channels, channels, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), C)."""
        return self.pointwise(_depthwise(x, self.depthwise))


class LocalBranch(nn.Module):
    """Inverted residual of width 1: pointwise, depthwise 3x3, pointwise, identity."""

    def __init__(self, channels: int, norm_cfg: dict | None) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, norm_cfg=norm_cfg)
        self.depthwise = ConvNorm(channels, channels, 3, groups=channels, norm_cfg=norm_cfg)
        self.conv2 = ConvNorm(channels, channels, norm_cfg=norm_cfg, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        return self.conv2(self.depthwise(self.conv1(x)), residual=x)


class MultiPathStage(nn.Module):
    """Multi-scale patch embedding, parallel encoders, a local branch, and their aggregation;
    ``stride`` is the first embedding's, ``encoder`` are arguments of :class:`PathEncoder`."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        paths: int,
        stride: int,
        norm_cfg: dict | None,
        *encoder: Any,
    ) -> None:
        super().__init__()
        strides = [stride] + [1] * (paths - 1)
        self.embeds = nn.ModuleList(PatchEmbedding(channels, s, norm_cfg) for s in strides)
        self.paths = nn.ModuleList(PathEncoder(channels, *encoder) for _ in range(paths))
        self.local = LocalBranch(channels, norm_cfg)
        self.aggregate = ConvNorm(channels * (paths + 1), out_channels, norm_cfg=norm_cfg)

    def forward(self, x: Tensor, run_block: Callable[..., Tensor]) -> Tensor:
        """(B, H, W, channels) to (B, ceil(H / stride), ceil(W / stride), out_channels)."""
        maps: list[Tensor] = []
        for embed, path in zip(self.embeds, self.paths, strict=True):
            x = embed(x)
            if not maps:
                maps.append(self.local(x))
            maps.append(path(x, run_block))
        return self.aggregate(torch.cat(maps, dim=-1))


@MODELS.register_module(force=True)  # in place of registration.py's function
class MPViT(DenseBackbone):
    """MPViT backbone (CVPR 2022, arXiv 2112.11010).

    Args:
        arch (str | dict): 'tiny', 'xsmall', 'small' or 'base', or a dict with exactly the keys

            - depths (Sequence[int]): Encoder layers of each stage's paths.
            - widths (Sequence[int]): Channels inside each stage, multiples of 8. A level has the
              width of the next stage; the last one its own.
            - paths (Sequence[int]): Parallel paths of each stage.
            - mlp_ratio (int): Hidden over outer width of the MLPs.

        drop_path_rate (float): Stochastic depth of the last layer, growing linearly from 0 over
            all layers. Defaults to 0.0.
        norm_cfg (dict, optional): Norm of the convolutions; 'SyncBNOrBN' for many GPUs. Defaults
            to None: BN.

    ``in_channels``, ``out_indices``, ``norm_eval``, ``frozen_stages``, ``with_cp``, ``init_cfg``,
    ``pretrained``: see :class:`~cyclemlp_mm.models.dense_backbone.DenseBackbone`.
    """

    arch_zoo: ClassVar[Mapping[str, dict]] = {
        name: dict(depths=depths, widths=widths, paths=(2, 3, 3, 3), mlp_ratio=mlp_ratio)
        for name, depths, widths, mlp_ratio in (
            ('tiny', (1, 2, 4, 1), (64, 96, 176, 216), 2),
            ('xsmall', (1, 2, 4, 1), (64, 128, 192, 256), 4),
            ('small', (1, 3, 6, 3), (64, 128, 216, 288), 4),
            ('base', (1, 3, 8, 3), (128, 224, 368, 480), 4),
        )
    }
    published_format = MPVIT_FORMAT
    stem_border = 3

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Normal convolutions, of deviation sqrt(2 / (k k out)), and truncated normal Linears."""
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def __init__(
        self,
        arch: str | Mapping = 'small',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        settings = resolve_arch(arch, self.arch_zoo, 'MPViT')
        check_per_stage(settings, ('depths', 'widths', 'paths'))
        check_int('arch mlp_ratio', settings['mlp_ratio'])
        depths, widths = settings['depths'], settings['widths']
        if any(width % HEADS for width in widths):
            raise ValueError(f'arch widths must be multiples of {HEADS} (heads), but got {widths}')
        options = (frozen_stages, with_cp, init_cfg, pretrained, norm_eval)
        super().__init__(len(depths), in_channels, out_indices, *options)
        self.depths = depths
        rates = drop_path_rates(drop_path_rate, sum(depths))
        level_widths = (*widths[1:], widths[-1])
        self.stem = nn.Sequential(
            ConvNorm(in_channels, widths[0] // 2, 3, 2, norm_cfg=norm_cfg),
            ConvNorm(widths[0] // 2, widths[0], 3, 2, norm_cfg=norm_cfg),
        )
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            encoder = (settings['mlp_ratio'], rates[sum(depths[:i]) : sum(depths[: i + 1])])
            shape = (widths[i], level_widths[i], settings['paths'][i], 2 if i else 1)
            self.stages.append(MultiPathStage(*shape, norm_cfg, *encoder))
        self.apply(self.init_layer)
        self.finish(level_widths, [4 * 2**i for i in range(len(depths))], out_norms=False)

    def run_stage(self, index: int, x: Tensor) -> Tensor:
        """A channels-last map through stage ``index``."""
        return self.stages[index](x, self.run_block)


def _depthwise(x: Tensor, conv: Callable[[Tensor], Tensor]) -> Tensor:
    """A convolution of a channels-last map."""
    return conv(seen_as_nchw(x)).permute(0, 2, 3, 1).contiguous()
