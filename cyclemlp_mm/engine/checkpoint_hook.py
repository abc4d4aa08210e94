"""Published files under mmengine's hooks."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cyclemlp_mm.weights.unwrap import find_state_dict


@HOOKS.register_module()
class PublishedCheckpointHook(Hook):
    """Puts a checkpoint's weights under ``state_dict``, where other hooks look for them.

    Published files are bare or say ``model``; mmengine's loader takes a bare one, but ``EMAHook``
    stops at the missing key.
    """

    priority = 'VERY_HIGH'  # before EMAHook

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Change ``checkpoint`` in place; a training checkpoint has the key and is left alone."""
        if 'state_dict' not in checkpoint:
            state_dict = find_state_dict(checkpoint, 'to load')
            checkpoint.clear()
            checkpoint['state_dict'] = state_dict
