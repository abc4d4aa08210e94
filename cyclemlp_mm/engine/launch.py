"""Start of several processes where mmengine's own start needs a GPU."""

import os

import torch
import torch.distributed as dist
from mmengine.config import Config

from cyclemlp_mm.errors import UserError


def prepare_launch(cfg: Config, launcher: str) -> None:
    """Set ``cfg.launcher``; without a GPU, also start the process group, with gloo.

    mmengine's ``--launcher pytorch`` calls ``torch.cuda.set_device`` and hands device ids to DDP;
    with a process group already there it does neither.

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
        raise UserError(
            f'--launcher {launcher} needs GPUs; without, start the processes with torchrun and '
            '--launcher pytorch (tools/dist_train.sh does)'
        )
    missing = [v for v in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') if v not in os.environ]
    if missing:
        raise UserError(
            f'--launcher pytorch: {", ".join(missing)} are not set; start with torchrun or '
            'tools/dist_train.sh CONFIG NUM_PROCESSES'
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
    )


def is_first_process() -> bool:
    """Whether this is the process that speaks for all, also before the process group is there."""
    ranks = (os.environ.get(name) for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    return next((rank for rank in ranks if rank is not None), '0') == '0'


def finish_launch() -> None:
    """End the process group, all processes together: one that leaves early aborts the others."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
