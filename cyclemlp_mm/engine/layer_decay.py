"""Layer-wise learning-rate decay of detectors, segmentors and classifiers."""

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

from cyclemlp_mm.errors import UserError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's constructor, also for models of mmdet and mmseg, which it rejects.

    A parameter of depth d has the learning rate ``lr · layer_decay_rate ** (D - 1 - d)``, D being
    the number of depths. Depths are those of the backbone's ``get_layer_depth``; necks and heads
    have the last one, whose rate is ``lr``. Other keys of ``paramwise_cfg``: mmpretrain's.

    Raises:
        UserError: The model has no backbone with ``get_layer_depth``, or ``layer_decay_rate`` is
            missing or not in (0, 1].
    """

    def add_params(self, params, module, prefix='', get_layer_depth=None, **kwargs) -> None:
        """Add the parameters of ``module`` to the groups in ``params``, each as its own group."""
        if get_layer_depth is None:
            rate = self.paramwise_cfg.get('layer_decay_rate')
            if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
                raise UserError(
                    f'optim_wrapper.paramwise_cfg.layer_decay_rate is {rate!r}; it must be a '
                    'number above 0, at most 1, such as 0.9'
                )
            get_layer_depth = _layer_depth(module)
        super().add_params(params, module, prefix, get_layer_depth, **kwargs)


def _layer_depth(model: nn.Module):
    """Function from the name of a model's parameter to its depth and the number of depths."""
    own = getattr(getattr(model, 'backbone', None), 'get_layer_depth', None)
    if own is None:
        raise UserError(
            'optim_wrapper.constructor: layer-wise decay needs a backbone with get_layer_depth, '
            f'but {type(model).__name__} has none. Take a backbone of this package, or leave the '
            'constructor out'
        )
    return lambda name: own(name, 'backbone.')
