"""FSDP for mmengine's FlexibleRunner: which layers are sharded, and full state dicts."""

import warnings
from collections.abc import Sequence

import torch
from mmengine._strategy import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from mmengine.dist import is_main_process
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import Tensor, nn
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

from cyclemlp_mm.engine.work_dir import atomic_file


class _AtomicCheckpoints:
    """A strategy opens a checkpoint by its name, whatever ``backend_args`` say."""

    def save_checkpoint(self, filename: str, **kwargs: object) -> None:
        if not is_main_process():  # takes part, and writes nothing
            super().save_checkpoint(filename, **kwargs)
            return
        with atomic_file(filename) as partial_file:
            super().save_checkpoint(str(partial_file), **kwargs)


@STRATEGIES.register_module()
class AtomicSingleDeviceStrategy(_AtomicCheckpoints, SingleDeviceStrategy):
    """``SingleDeviceStrategy`` whose checkpoints are complete or absent."""


@STRATEGIES.register_module()
class AtomicDDPStrategy(_AtomicCheckpoints, DDPStrategy):
    """``DDPStrategy`` whose checkpoints are complete or absent."""


@STRATEGIES.register_module()
class ShardedStrategy(_AtomicCheckpoints, FSDPStrategy):
    """mmengine's ``FSDPStrategy``, which also resumes, clips gradients, and runs without GPUs.

    Checkpoints hold the full state, in one file, complete or absent. ``clip_grad`` of the config
    means the norm over all parameters, not over those of a process. Without GPUs, the processes
    communicate by gloo, to try a config out.

    Args:
        **kwargs: As for :class:`mmengine._strategy.FSDPStrategy`; ``state_dict_cfg`` is set here.
    """

    def __init__(self, **kwargs: object) -> None:
        # mmengine's calls, about which a user can do nothing.
        warnings.filterwarnings('ignore', r'FSDP\.(set_)?state_dict_type\(\)', FutureWarning)
        super().__init__(state_dict_cfg='full', **kwargs)
        if not torch.cuda.is_available():
            # Without a GPU, to 'offload' frees the very tensors that are to be kept.
            self.state_dict_config.offload_to_cpu = False
            self.optim_state_dict_config.offload_to_cpu = False

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not torch.cuda.is_available():
            wrapper = self.model_wrapper or dict(type='MMFullyShardedDataParallel')
            self.model_wrapper = dict(wrapper, device_id=torch.device('cpu'))
        return super()._wrap_model(model)

    def build_optim_wrapper(
        self, optim_wrapper: object, model: nn.Module | None = None
    ) -> BaseOptimWrapper:
        """As mmengine's; a norm that gradients are clipped by is that of the whole model."""
        built = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(built, 'clip_func', None) is torch.nn.utils.clip_grad_norm_:
            built.clip_func = lambda parameters, **clip_grad: self.model.clip_grad_norm_(
                **clip_grad
            )
        return built

    def load_model_state_dict(
        self, state_dict: dict[str, Tensor], *, strict: bool = False, **kwargs: object
    ) -> None:
        """Load weights; unless ``strict``, those of another shape are left out."""
        own = {} if strict else whole_state_dict(self.model)
        fitting = {n: t for n, t in state_dict.items() if n not in own or own[n].shape == t.shape}
        super().load_model_state_dict(fitting, strict=strict, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a checkpoint's full optimiser state, also that of a model that was not sharded."""
        optimizer = self.optim_wrapper.optimizer
        # By keyword: PyTorch 2.1 changed the order, in which mmengine still gives them.
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=optimizer,
            optim_state_dict=_by_name(state_dict, self.model, optimizer),
        )
        self.optim_wrapper.load_state_dict(state)


def _by_name(state_dict: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """An optimiser's state dict with names for parameters, as FSDP has it, not their numbers."""
    if not all(isinstance(key, int) for key in state_dict['state']):
        return state_dict
    parameters = model.named_parameters()
    names = {id(p): name.replace('_fsdp_wrapped_module.', '') for name, p in parameters}
    # Numbers count the parameters of all groups, one group after another.
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group['params']]
    groups = [
        dict(group, params=[ordered[number] for number in group['params']])
        for group in state_dict['param_groups']
    ]
    state = {ordered[number]: state for number, state in state_dict['state'].items()}
    return dict(state_dict, state=state, param_groups=groups)


@FUNCTIONS.register_module()
def shard_layers(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, layers: Sequence[str] = ()
) -> bool:
    """``auto_wrap_policy`` of FSDP: a unit for each layer of some classes, and one for the rest.

    PyTorch's ``size_based_auto_wrap_policy`` makes units of heads as well. But the toolboxes call
    ``head.loss(…)`` and ``head.predict(…)``, not the ``forward`` in which FSDP gathers a unit's
    parameters. The rest, with necks and heads, is gathered for the whole of a step.

    Args:
        module (nn.Module): A part of the model that FSDP asks about.
        recurse (bool): Whether it asks if it shall look at the parts of ``module``.
        nonwrapped_numel (int): Parameters of ``module`` in no unit yet; not used.
        layers (Sequence[str]): Names of the classes.
    """
    return recurse or type(module).__name__ in layers


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds a part of the model's parameters only."""
    return isinstance(model, FullyShardedDataParallel)


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The full state dict of a sharded model on the CPU; all processes call this together."""
    config = FullStateDictConfig(rank0_only=False, offload_to_cpu=torch.cuda.is_available())
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, config):
        return model.state_dict()
