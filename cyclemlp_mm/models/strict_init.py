"""Initialisation and loading in which a checkpoint fits completely or raises."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import ClassVar

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, update_init_info
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from cyclemlp_mm.errors import DownloadError
from cyclemlp_mm.weights import LoadReport, PublishedFormat, check_fit, init_from_checkpoint
from cyclemlp_mm.weights.loading import BLOCK
from cyclemlp_mm.weights.unwrap import named_like, part_of, with_prefix


class StrictInit(BaseModule):
    """Loads what :func:`~cyclemlp_mm.weights.split_pretrained` put into ``_pretrained_cfgs``, and
    refuses every other file that does not fit, whoever loads it."""

    #: How the family's published files name what we have.
    published_format: ClassVar[PublishedFormat]
    #: Blocks of each stage of the arch, those that ``out_indices`` leaves out included.
    depths: Sequence[int] = ()
    _pretrained_cfgs: list[dict]
    #: Names of tensors that were on the meta device and not loaded since: their values are not set.
    _unset: frozenset[str] = frozenset()

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Initialise a layer where the family does not take what PyTorch's own layers start with.

        A family calls ``self.apply(self.init_layer)`` when it is built.
        """

    def check_fit(
        self,
        state_dict: Mapping[str, Tensor],
        source: str,
        own: Mapping[str, Tensor] | None = None,
        complete: bool = False,
        prefix: str = '',
    ) -> LoadReport:
        """See :func:`cyclemlp_mm.weights.loading.check_fit`."""
        return check_fit(self, self.published_format, state_dict, source, own, complete, prefix)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: object
    ) -> None:
        # A backbone by itself takes a whole model's names, as our loaders hand all files out.
        named = state_dict if prefix else named_like(state_dict, self.state_dict())
        if named is not state_dict:
            for name in with_prefix(named):
                del state_dict[name]
            state_dict.update(named)
        if _asked_by_mmengine():
            file, given, own = local_metadata.get('file', ''), part_of(state_dict, prefix), None
            if given and all('lora_' in name for name in given):
                own = {name: t for name, t in self.state_dict().items() if 'lora_' in name}
            self.check_fit(given, file or 'that is loaded', own, prefix=prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if local_metadata.get('assign_to_params_buffers') or not self._on_meta():
            self._unset = frozenset(n for n in self._unset if prefix + n not in state_dict)

    def _apply(self, *args: object, **kwargs: object) -> StrictInit:
        self._unset |= self._on_meta()  # to_empty() gives them memory as it finds it
        return super()._apply(*args, **kwargs)

    def _on_meta(self) -> set[str]:
        tensors = chain(self.named_parameters(), self.named_buffers())
        return {name for name, tensor in tensors if tensor.is_meta}

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter and the number of depths, for learning rates that decay by layer.

        As mmpretrain's ``LearningRateDecayOptimWrapperConstructor`` asks for it: the stem is 0, a
        block follows the one before it, what leads into a stage counts with the block before, and
        norms of the outputs, like all that is not the backbone's, are the last. ``prefix`` is what
        the backbone's names begin with.
        """
        depths = [
            self.depths[i] if i < len(self.depths) else len(stage)
            for i, stage in enumerate(self.stages)
        ]
        number = sum(depths) + 2
        name = param_name[len(prefix) :]
        part, _, rest = name.partition('.')
        if not param_name.startswith(prefix) or part.startswith(('norm', 'final_norm')):
            return number - 1, number
        if part in ('stages', 'downsamples', 'downsample_layers'):
            stage = int(rest.partition('.')[0]) + (part == 'downsample_layers')
            before = sum(depths[:stage])
            if block := BLOCK.match(name):
                return before + int(block[2]) + 1, number
            if part == 'stages' and '.embeds.' not in name:  # shared by the blocks of a stage
                last = '.aggregate.' in name
                return before + (depths[stage] if last else 1), number
            return before, number
        return 0, number  # the stem

    def init_weights(self) -> None:
        """Initialise according to ``init_cfg``; a checkpoint that does not fit raises.

        After ``to_empty()`` of a model from the meta device, all that was not loaded is initialised
        first, as when the model is built on another device.

        Raises:
            RuntimeError: The backbone is on the meta device, or a layer cannot be initialised.
        """
        if self._on_meta():
            raise RuntimeError(
                f'{type(self).__name__} is on the meta device, where tensors have no values: call '
                'to_empty(device=…) of the model first'
            )
        if self._unset:
            self._set_values()
        if self.init_cfg is not None:
            super().init_weights()
        for cfg in self._pretrained_cfgs:
            try:
                report = init_from_checkpoint(self, self.published_format, **cfg)
            except DownloadError as error:
                raise DownloadError(
                    f'{error}: `--cfg-options model.backbone.init_cfg.checkpoint=FILE`. To train '
                    'from scratch on purpose: `--cfg-options model.backbone.init_cfg=None`'
                ) from error
            if hasattr(self, '_params_init_info'):  # a whole model is keeping mmengine's account
                update_init_info(self, init_info=str(report))
        self._is_init = True

    @torch.no_grad()
    def _set_values(self) -> None:
        """Initialise all tensors, but for those that have values."""
        own = dict(chain(self.named_parameters(), self.named_buffers()))
        kept = {name: t.clone() for name, t in own.items() if name not in self._unset}
        for name, module in self.named_modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
            elif [*module.parameters(False), *module.buffers(False)]:
                raise RuntimeError(
                    f'{name}, a {type(module).__name__}, cannot be initialised after to_empty(): '
                    'it has no reset_parameters()'
                )
        self.apply(self.init_layer)
        for name, tensor in kept.items():
            own[name].copy_(tensor)
        self._unset = frozenset()
        print_log(
            f'{type(self).__name__}: initialised, as it was built on the meta device. Norms of '
            'necks and heads, and mean and std of a data_preprocessor, are set by no toolbox after '
            'to_empty(): load or set them',
            'current',
            logging.WARNING,
        )


def _asked_by_mmengine() -> bool:
    """Whether mmengine's ``load_checkpoint`` is what loads, and not PyTorch's ``load_state_dict``.

    The inference APIs of the toolboxes call it, and of a misfit it only warns. PyTorch raises,
    unless its caller said ``strict=False``. Both call the same method.
    """
    frame, ours = inspect.currentframe(), ('_asked_by_mmengine', '_load_from_state_dict')
    while frame is not None and frame.f_code.co_name in ours:  # here, and in subclasses
        frame = frame.f_back
    return frame is not None and frame.f_globals.get('__name__') == load_checkpoint.__module__
