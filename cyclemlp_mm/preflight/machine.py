"""What a training needs of the machine: processes and GPUs, room on the disk and in /dev/shm."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.errors import UserError, some

from .findings import Report

_MIB = 1024 * 1024
_SHARED_MEMORY = '/dev/shm'
_SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'size')
_FSDP = ('ShardedStrategy', 'FSDPStrategy')
_NEED_GPUS = ('FSDPStrategy', 'DeepSpeedStrategy', 'ColossalAIStrategy')


def check_strategy(report: Report, cfg: Config) -> None:
    """What a strategy that shards a model needs, and what it cannot do."""
    kind = (cfg.get('strategy') or {}).get('type')
    if kind in _NEED_GPUS and get_device() == 'cpu':
        report.error(
            'strategy',
            f'{kind} shards a model over GPUs, and PyTorch sees none',
            'Train where there are GPUs (tools/doctor.py reports what is missing), or leave the '
            'strategy out of _base_',
        )
    elif kind in _FSDP and cfg.get('launcher', 'none') == 'none':
        report.error(
            'strategy',
            f'{kind} shards a model over processes, and this is one alone',
            'Start them with tools/dist_train.sh CONFIG NUM_PROCESSES',
        )
    if kind in _FSDP and any(h.get('type') == 'EMAHook' for h in cfg.get('custom_hooks') or []):
        report.error(
            'custom_hooks',
            f'EMAHook copies the model, which {kind} shards',
            'Leave it, or the strategy, out',
        )


def check_layers(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether the layers that FSDP is to shard one by one are in the model."""
    wrapper = (cfg.get('strategy') or {}).get('model_wrapper') or {}
    policy = wrapper.get('auto_wrap_policy')
    if not isinstance(policy, dict) or policy.get('type') != 'shard_layers':
        return
    layers = list(policy.get('layers') or ())
    if not {type(module).__name__ for module in model.modules()}.intersection(layers):
        report.warning(
            'strategy.model_wrapper.auto_wrap_policy.layers',
            f'the model has no layer of a class {some(layers)}: all of it is gathered for each '
            "step, which saves no memory. Name the class of your backbone's blocks",
        )


def check_work_dir(report: Report, cfg: Config, model: nn.Module) -> None:
    """Whether checkpoints can be written, and how many there is room for."""
    try:
        check_writable(cfg.work_dir, '--work-dir', is_folder=True)
    except UserError as error:
        report.error('work_dir', str(error))
        return
    folder = Path(cfg.work_dir).resolve()
    while not folder.exists():
        folder = folder.parent
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    averages = any('EMA' in str(hook.get('type')) for hook in cfg.get('custom_hooks') or [])
    # Weights, and what Adam keeps of each; twice as many weights with an average of them.
    size = 4 * sum(p.numel() for p in model.parameters()) * (3 + averages)
    kept = hook.get('max_keep_ckpts', -1)
    needed = size * (max(kept, 0) + 1 + bool(hook.get('save_best')))  # one is being written
    free = shutil.disk_usage(folder).free
    what = f'{free // _MIB} MiB are free; a checkpoint takes about {size // _MIB} MiB'
    if free < 2 * size:
        report.error(folder, what, 'Make space, or take another --work-dir')
    elif free < needed:
        report.warning(
            folder,
            f'{what}, and {needed // _MIB} MiB will be needed for all that are '
            f'kept (max_keep_ckpts={kept})',
        )


def check_shared_memory(report: Report, cfg: Config) -> None:
    """Whether the batches of worker processes fit: where they do not, workers hang or die."""
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except (OSError, AttributeError):  # not Linux
        return
    free = status.f_bavail * status.f_frsize
    needed = 0
    for key in ('train_dataloader', 'val_dataloader'):
        loader = cfg.get(key) or {}
        workers = loader.get('num_workers', 0)
        largest = max(_areas(loader.get('dataset')), default=0)
        batch = 3 * largest * loader.get('batch_size', 1)  # bytes of RGB
        needed += batch * workers * (loader.get('prefetch_factor') or 2)
        is_error = free < batch / 2  # images may be narrower than the largest size
        if workers and largest and (is_error or free < needed):
            (report.error if is_error else report.warning)(
                f'{key}.num_workers',
                f'{_SHARED_MEMORY} has {free / 1e6:.0f} MB left, through which workers hand over '
                f'images: a batch needs {batch / 1e6:.0f} MB, {workers} workers '
                f'{needed / 1e6:.0f} MB; without them they hang or die',
                'Give more shared memory (docker run --shm-size=8g), or --cfg-options '
                f'{key}.num_workers=0 {key}.persistent_workers=False',
            )
            return


def _areas(node: object, is_size: bool = False) -> Iterator[int]:
    """Areas of all image sizes that the pipelines of a data set name."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _areas(value, key in _SIZES)
    elif is_size and type(node) is int:
        yield node * node
    elif is_size and isinstance(node, (list, tuple)) and [*map(type, node)] == [int, int]:
        yield node[0] * node[1]
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from _areas(part, is_size)
