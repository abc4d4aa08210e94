"""Initialisation from ``init_cfg`` in which a checkpoint fits completely or raises."""

from typing import ClassVar

from mmengine.model import BaseModule, update_init_info

from cyclemlp_mm.weights import PublishedFormat, init_from_checkpoint


class StrictInit(BaseModule):
    """Loads what :func:`~cyclemlp_mm.weights.split_pretrained` put into ``_pretrained_cfgs``."""

    #: How the family's published files name what we have.
    published_format: ClassVar[PublishedFormat]
    _pretrained_cfgs: 'list[dict]'

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        # A backbone by itself takes a whole model's names, as our loaders hand all files out.
        if not prefix and not any(name in state_dict for name in self.state_dict()):
            for name in [name for name in state_dict if name.startswith('backbone.')]:
                state_dict[name.removeprefix('backbone.')] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; a checkpoint that does not fit raises."""
        if self.init_cfg is not None:
            super().init_weights()
        for cfg in self._pretrained_cfgs:
            report = init_from_checkpoint(self, self.published_format, **cfg)
            if hasattr(self, '_params_init_info'):  # a whole model is keeping mmengine's account
                update_init_info(self, init_info=str(report))
        self._is_init = True
