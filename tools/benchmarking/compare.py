"""Several backbones on one size, taking turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from .contenders import RIVALS, contender
from .machine import peak_memory, timed
from .operations import published_operations, run_operations
from .saved_bytes import saved_for_backward
from .workloads import DTYPES, Workload, backbone_workload, config_workload


def compare(
    entries: Sequence[tuple[str, str]],
    arch: str,
    size: tuple[int, int, int],
    mode: str,
    device: torch.device,
    repeats: int,
    backend: str = 'auto',
    deploy: bool = False,
    config: bool = False,
) -> list[dict]:
    """Time contenders in turns: one round runs each once, so that a slow spell hits all of them.

    Args:
        entries (Sequence[tuple[str, str]]): Contender and dtype; 'amp' trains or infers under
            autocast to bfloat16, any other dtype is that of the weights too.
        arch (str): One of :data:`~benchmarking.contenders.ARCHS`, or a config.
        size (tuple[int, int, int]): Batch, height, width.
        mode (str): 'infer' or 'train'.
        device (torch.device): Where.
        repeats (int): Rounds that count; two more come first.
        backend (str): Mixer backend of 'ours'. Defaults to 'auto'.
        deploy (bool): Whether 'ours' is folded, for inference. Defaults to False.
        config (bool): Whether ``arch`` is a config, whose whole model is timed. Defaults to False.

    Returns:
        list[dict]: One row per entry: median and quartiles in milliseconds, images per second, peak
        memory, bytes kept for backward and, of backbones, multiply-adds as published and as run.
    """
    train = mode == 'train'
    work: dict[tuple[str, str], Workload] = {}
    for name, dtype in entries:
        if config:
            work[name, dtype] = config_workload(name, arch, dtype, size, train, device, deploy)
        else:
            work[name, dtype] = backbone_workload(
                name, arch, dtype, size, train, device, backend, deploy
            )
    calls = {entry: workload.call(train) for entry, workload in work.items()}
    seconds = {entry: [] for entry in calls}
    for turn in range(repeats + 2):
        for entry, call in calls.items():
            taken = timed(call, device)
            if turn >= 2:
                seconds[entry].append(taken)
    rows = []
    for (name, dtype), values in seconds.items():
        low, median, high = _quartiles(values)
        row = dict(
            contender=name,
            arch='' if name in RIVALS else arch,
            dtype=dtype,
            mode=mode,
            size='x'.join(map(str, size)),
            median_ms=1e3 * median,
            q1_ms=1e3 * low,
            q3_ms=1e3 * high,
            images_per_s=size[0] / median,
            rounds=len(values),
            peak_bytes=peak_memory(calls[name, dtype], device),
        )
        model, forward, shape = work[name, dtype]
        if not config:
            # A counter does not know deform_conv2d; every form of ours has the same count.
            counted = model if name in RIVALS else contender('ours', arch)
            row['multiply_adds'] = published_operations(counted, shape)
            if name == 'ours' and not deploy:  # folded ahead, it is another count
                run_dtype = torch.bfloat16 if dtype == 'amp' else DTYPES[dtype]
                row['run_multiply_adds'] = run_operations(model, shape, device, run_dtype)
        if train:
            row['saved_bytes'] = saved_for_backward(forward, model)
        rows.append(row)
    return rows


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    return tuple(statistics.quantiles(values, n=4, method='inclusive'))
