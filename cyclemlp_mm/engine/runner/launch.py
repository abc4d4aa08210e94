"""Start and end of the processes of a run, and mixed precision, also without a GPU."""

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import all_reduce, get_comm_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError

_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
#: Whether this process has gloo's threads; they outlive ``destroy_process_group``.
_has_gloo_threads = False


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` under CPU autocast in bfloat16; mmengine's ``AmpOptimWrapper`` needs a GPU.

    bfloat16 has float32's range: there is no loss scaler, so a checkpoint is resumed with or
    without mixed precision. Weights, gradients and the optimiser's state stay float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


def prepare_launch(cfg: Config, launcher: str) -> None:
    """Set ``cfg.launcher``; without a GPU, also start the process group, with gloo.

    mmengine's ``--launcher pytorch`` calls ``torch.cuda.set_device`` and passes device ids to DDP;
    if a process group exists already, it does neither.

    Args:
        cfg (Config): Changed in place.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        UserError: 'slurm' or 'mpi' without a GPU.
    """
    cfg.launcher = launcher
    if launcher == 'none' or torch.cuda.is_available():
        return
    if launcher != 'pytorch':
        raise UserError(f'--launcher {launcher} needs GPUs; without, use tools/dist_train.sh')
    missing = [v for v in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') if v not in os.environ]
    if missing:
        raise UserError(
            f'--launcher pytorch: {", ".join(missing)} are not set; start with torchrun or '
            'tools/dist_train.sh'
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
        global _has_gloo_threads
        _has_gloo_threads = True
    wrapper = dict(  # what mmengine's own wrapper would have
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}


def is_first_process(launcher: str) -> bool:
    """Whether this process checks, locks and reports for all; also before the process group exists.

    Without a launcher, every process is a run of its own, whatever variables its job has set.
    """
    return launcher == 'none' or os.environ.get(_RANKS[launcher], '0') == '0'


def any_process(flag: Tensor) -> Tensor:
    """Whether a flag, a scalar, is set in at least one process; all have to call this together."""
    number = flag.to(get_comm_device(), torch.float32)
    all_reduce(number, 'max')
    return number.to(flag.device) > 0


def finish_launch() -> None:
    """End the process group, all processes together: one that leaves early aborts the others."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextmanager
def no_teardown_under_gloo() -> Iterator[None]:
    """End the process after the block if gloo's threads run; otherwise do nothing.

    A thread of gloo that needs the interpreter's lock while the interpreter is finalised aborts the
    process (https://github.com/pytorch/pytorch/issues/190489). So the interpreter is not finalised:
    threads are joined, exit handlers run, streams are flushed, and the exit status is the same.
    """
    status: object = 0
    try:
        yield
    except BaseException as error:
        if not _has_gloo_threads:
            raise
        status = 1
        if isinstance(error, SystemExit):
            status = error.code or 0
        else:
            traceback.print_exception(error)
    if not _has_gloo_threads:
        return
    try:
        if not isinstance(status, int):  # a message, as Python prints it
            print(status, file=sys.stderr)
            status = 1
        threading._shutdown()  # as the interpreter does, in this order
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
