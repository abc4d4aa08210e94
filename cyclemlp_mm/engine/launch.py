"""Start and end of several processes without a GPU, where mmengine's own start needs one."""

from __future__ import annotations

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

from cyclemlp_mm.errors import UserError

#: Whether this process has gloo's threads; they outlive ``destroy_process_group``.
_has_gloo_threads = False


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

    Args:
        launcher (str): As for :func:`prepare_launch`. Without one, every process is a run of its
            own, whatever variables the job that started it has set.
    """
    ranks = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
    return launcher == 'none' or os.environ.get(ranks[launcher], '0') == '0'


def finish_launch() -> None:
    """End the process group, all processes together: one that leaves early aborts the others."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextmanager
def no_teardown_under_gloo() -> Iterator[None]:
    """End the process with the body, where gloo's threads run; elsewhere, do nothing.

    A thread of gloo's takes the interpreter's lock to give a tensor back. One that comes to it
    while the interpreter is taken down aborts the process, after all its work was done
    (https://github.com/pytorch/pytorch/issues/190489). So the interpreter is not taken down:
    threads are waited for, exit handlers run, streams are flushed, as multiprocessing does at
    the end of a process that was forked; then the process is gone. It ends with the exit status
    that the interpreter would have given it.
    """
    try:
        yield
    except BaseException as error:
        if _has_gloo_threads:
            _leave(_exit_status(error))
        raise
    if _has_gloo_threads:
        _leave(0)


def _exit_status(error: BaseException) -> int:
    """The status of a process that ends with ``error``, which is printed where Python would."""
    if not isinstance(error, SystemExit):
        traceback.print_exception(type(error), error, error.__traceback__)
        return 1
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _leave(status: int) -> None:
    try:
        threading._shutdown()  # as the interpreter does, in this order
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
