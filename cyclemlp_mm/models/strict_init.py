"""Initialisation and loading in which a checkpoint fits completely or raises."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

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
    """Loads the files of ``init_cfg``, and rejects a file that does not fit, whoever loads it."""

    #: How the family's published files name what we have.
    published_format: ClassVar[PublishedFormat]
    #: Blocks of each stage of the arch, those that ``out_indices`` leaves out included.
    depths: Sequence[int] = ()
    #: Files that ``init_weights()`` loads: ``checkpoint``, ``prefix``.
    pretrained_cfgs: list[dict]
    #: Names of tensors without values: they were on the meta device, and not loaded since.
    _unset: frozenset[str] = frozenset()

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Initialise a layer where the family does not keep PyTorch's values; for ``apply``."""

    def check_fit(self, state_dict: Mapping[str, Tensor], source: str, *args: Any) -> LoadReport:
        """See :func:`cyclemlp_mm.weights.loading.check_fit`."""
        return check_fit(self, self.published_format, state_dict, source, *args)

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
            self.check_fit(given, file or 'that is loaded', own, False, prefix)
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
        """Depth of a parameter and the number of depths, for mmpretrain's
        ``LearningRateDecayOptimWrapperConstructor``.

        The stem is 0, what leads into a stage counts with the block before, and norms of the
        outputs, like all whose name does not begin with ``prefix``, are the last.
        """
        depths = [*self.depths[: len(self.stages)]] or [len(stage) for stage in self.stages]
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

        After ``to_empty()`` of a model on the meta device, what was not loaded is initialised.

        Raises:
            RuntimeError: The backbone is on the meta device, or a layer cannot be initialised.
        """
        if self._on_meta():
            kind = type(self).__name__
            raise RuntimeError(f'{kind} is on the meta device: call to_empty(device=…) first')
        if self._unset:
            self._set_values()
        if self.init_cfg is not None:
            super().init_weights()
        for cfg in self.pretrained_cfgs:
            try:
                report = init_from_checkpoint(self, self.published_format, **cfg)
            except DownloadError as error:
                raise DownloadError(
                    f'{error}: `--cfg-options model.backbone.init_cfg.checkpoint=FILE`, or train '
                    'from scratch: `--cfg-options model.backbone.init_cfg=None`'
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
                    f'{name} ({type(module).__name__}) has no reset_parameters() for to_empty()'
                )
        self.apply(self.init_layer)
        for name, tensor in kept.items():
            own[name].copy_(tensor)
        self._unset = frozenset()
        what = "norms of necks and heads, or a data_preprocessor's mean and std"
        did = f'{type(self).__name__}: initialised after to_empty(), which the toolboxes do not do'
        print_log(f'{did} for {what}: load or set them', 'current', logging.WARNING)


def _asked_by_mmengine() -> bool:
    """Whether mmengine's ``load_checkpoint`` loads, which only warns of a misfit, and not PyTorch's
    ``load_state_dict``, which raises; both call the same method."""
    frame, ours = inspect.currentframe(), ('_asked_by_mmengine', '_load_from_state_dict')
    while frame is not None and frame.f_code.co_name in ours:  # here, and in subclasses
        frame = frame.f_back
    return frame is not None and frame.f_globals.get('__name__') == load_checkpoint.__module__
