"""Deploy mode for a model that mmengine's Runner has built and loaded."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cyclemlp_mm.models import to_deploy


@HOOKS.register_module()
class DeployModel(Hook):
    """Folds the model before it is tested; see :func:`cyclemlp_mm.models.to_deploy`."""

    priority = 'VERY_LOW'  # behind EMAHook, which puts the averaged weights in

    def before_test_epoch(self, runner: Runner) -> None:
        """Fold, in place.

        Args:
            runner (Runner): With its checkpoint loaded.
        """
        model = runner.model
        to_deploy(model.module if is_model_wrapper(model) else model)
        runner.logger.info('deploy mode: what can be folded was folded')
