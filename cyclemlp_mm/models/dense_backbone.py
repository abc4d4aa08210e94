"""What every backbone of this package shares: levels, norms, freezing, checkpointing, loading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cyclemlp_mm.weights import split_pretrained

from .arguments import check_bool, check_positive_int
from .checkpointing import checkpointed
from .layers import to_nchw
from .levels import check_frozen_stages, resolve_out_indices
from .recorded import Recorded, any_size
from .strict_init import StrictInit


class DenseBackbone(StrictInit, Recorded):
    """Base of the backbones: a stem and stages in, one NCHW map per asked-for level out.

    A family builds ``self.stem`` and ``self.stages``, on channels-last maps, then calls
    :meth:`finish`. A stage is a ModuleList of blocks; a family whose stages are something else says
    in :meth:`run_stage` how they run. ``self.downsamples``, where a family has them, are the layers
    into each stage.

    Args:
        num_levels (int): Number of stages.
        in_channels (int): Channels of the input image.
        out_indices (int | Sequence[int]): Levels to return, negative ones from the last.
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and the first n stages with
            the downsampling into them and their output norms.
        with_cp (bool): Activation checkpointing of every block in training.
        init_cfg (dict | list[dict], optional): mmengine's initialisation; ``type='Pretrained'`` is
            loaded strictly, see :func:`cyclemlp_mm.weights.init_from_checkpoint`.
        pretrained (str, optional): Deprecated way to say
            ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``; mmseg may pass it.
    """

    #: Smallest image side, in pixels: the coarsest level still has one cell.
    min_size: ClassVar[int] = 32

    def __init__(
        self,
        num_levels: int,
        in_channels: int,
        out_indices: int | Sequence[int],
        frozen_stages: int,
        with_cp: bool,
        init_cfg: dict | list[dict] | None,
        pretrained: str | None,
    ) -> None:
        init_cfg, self._pretrained_cfgs = split_pretrained(init_cfg, pretrained)
        super().__init__(init_cfg=init_cfg)
        self.in_channels = check_positive_int('in_channels', in_channels)
        self.out_indices = resolve_out_indices(out_indices, num_levels)
        self.frozen_stages = check_frozen_stages(frozen_stages, num_levels)
        self.with_cp = check_bool('with_cp', with_cp)

    def finish(self, widths: Sequence[int], strides: Sequence[int], out_norms: bool) -> None:
        """Add one LayerNorm per returned level, state the outputs, and freeze.

        Args:
            widths (Sequence[int]): Channels of every level.
            strides (Sequence[int]): Pixels per cell of every level.
            out_norms (bool): Whether returned levels are normed.

        Raises:
            TypeError: ``out_norms`` is no bool.
        """
        check_bool('out_norms', out_norms)
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(widths[i]) if out_norms else nn.Identity())
        self._freeze()

    def train(self, mode: bool = True) -> DenseBackbone:
        """Switch the mode; what is frozen stays frozen and in eval mode."""
        super().train(mode)
        self._freeze()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, fine to coarse.

        Args:
            image (Tensor): (B, in_channels, H, W), floating, H and W at least 32.

        Returns:
            tuple[Tensor]: Contiguous NCHW maps, one per level of ``out_indices``, with
            ``out_channels`` channels; level i has about (H / stride, W / stride) cells.

        Raises:
            ValueError: Another number of dimensions or channels, or a side under 32 px.
        """
        whole = self.is_one_operator(image)  # first: FX's images have no size
        self._check_image(image)
        if whole:
            return self.one_operator(image)
        with any_size():
            return self.levels(image)

    def levels(self, image: Tensor) -> tuple[Tensor, ...]:
        """The feature maps of an image that was checked."""
        outputs = []
        x = self.stem(image.permute(0, 2, 3, 1))
        for i in range(self.out_indices[-1] + 1):  # the stages behind were not built
            x = self.run_stage(i, x)
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}')
                outputs.append(to_nchw(norm(x)))
        return tuple(outputs)

    def run_stage(self, index: int, x: Tensor) -> Tensor:
        """A channels-last map through the downsampling into stage ``index``, and its blocks."""
        if hasattr(self, 'downsamples'):
            x = self.downsamples[index](x)
        for block in self.stages[index]:
            x = self.run_block(block, x)
        return x

    def run_block(self, block: nn.Module, *inputs: object) -> Tensor:
        """A block's output; with ``with_cp`` in training, by activation checkpointing."""
        if self.with_cp and self.training and torch.is_grad_enabled():
            return checkpointed(block, *inputs)
        return block(*inputs)

    def _check_image(self, image: Tensor) -> None:
        name = type(self).__name__
        if image.dim() != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f'{name} expects images as (B, {self.in_channels}, H, W), but got '
                f'{tuple(image.shape)}'
            )
        height, width = image.shape[2:]
        # Not min(): it would tie a recorded graph to the longer side.
        if height < self.min_size or width < self.min_size:
            raise ValueError(
                f'{name} needs images of at least {self.min_size}x{self.min_size} px (its coarsest '
                f'level has stride 32), but got {image.shape[2]}x{image.shape[3]}: resize or pad'
            )

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.stem]
        for i in range(min(self.frozen_stages, len(self.stages))):
            frozen += [self.stages[i], getattr(self, f'norm{i}', None)]
            if hasattr(self, 'downsamples'):
                frozen.append(self.downsamples[i])
        for module in frozen:
            if module is not None:
                module.eval()
                module.requires_grad_(False)
