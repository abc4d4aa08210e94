"""Deploy mode for a model that mmengine's Runner has built and loaded."""

from __future__ import annotations

import copy

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cyclemlp_mm.models import to_deploy


@HOOKS.register_module()
class DeployModel(Hook):
    """Tests a folded copy of the model; see :func:`cyclemlp_mm.models.to_deploy`.

    A copy, because EMAHook puts the training's weights back into the model afterwards, one
    parameter after the other.
    """

    priority = 'VERY_LOW'  # behind EMAHook, which puts the averaged weights in

    def before_test_epoch(self, runner: Runner) -> None:
        """Put the copy in the model's place.

        Args:
            runner (Runner): With its checkpoint loaded.
        """
        self._model = model = runner.model
        runner.model = to_deploy(copy.deepcopy(model.module if is_model_wrapper(model) else model))
        runner.logger.info('deploy mode: what can be folded was folded')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Put the model back.

        Args:
            runner (Runner): Whose test has ended.
            metrics (dict, optional): Of the test; not used.
        """
        runner.model = self._model
