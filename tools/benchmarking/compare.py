"""Several contenders on one size, taking turns."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch

from .measure import peak_memory, published_operations, run_operations, saved_for_backward, timed
from .workloads import DTYPES, RIVALS, backbone_workload, config_workload, contender


def compare(
    entries: Sequence[tuple[str, str]],
    arch: str,
    size: tuple[int, int, int],
    args: argparse.Namespace,
    device: torch.device,
) -> list[dict]:
    """Time contenders in turns: one round runs each once, so that a slow spell hits all of them.

    Args:
        entries (Sequence[tuple[str, str]]): Contender and dtype.
        arch (str): One of :data:`ARCHS`, or a config.
        size (tuple[int, int, int]): Batch, height, width.
        args (argparse.Namespace): The command line.
        device (torch.device): Where.

    Returns:
        list[dict]: One row per entry: median and quartiles in milliseconds, images per second, peak
        memory, bytes kept for backward and, of backbones, multiply-adds as published and as run.
    """
    train, work = args.mode == 'train', {}
    for name, dtype in entries:
        if args.config:
            work[name, dtype] = config_workload(name, arch, dtype, size, train, device, args.deploy)
        else:
            work[name, dtype] = backbone_workload(
                name, arch, dtype, size, train, device, args.backend, args.deploy
            )
    calls = {entry: workload.call(train) for entry, workload in work.items()}
    seconds = {entry: [] for entry in calls}
    for turn in range(args.repeats + 2):
        for entry, call in calls.items():
            taken = timed(call, device)
            if turn >= 2:
                seconds[entry].append(taken)
    rows = []
    for (name, dtype), values in seconds.items():
        once = args.repeats == 1
        low, median, high = statistics.quantiles(values * (1 + once), n=4, method='inclusive')
        row = dict(
            contender=name,
            arch='' if name in RIVALS else arch,
            dtype=dtype,
            mode=args.mode,
            size='x'.join(map(str, size)),
            median_ms=1e3 * median,
            q1_ms=1e3 * low,
            q3_ms=1e3 * high,
            images_per_s=size[0] / median,
            rounds=len(values),
            peak_bytes=peak_memory(calls[name, dtype], device),
        )
        model, forward, shape = work[name, dtype]
        if not args.config:
            # A counter cannot see deform_conv2d; every form of ours has the same count.
            counted = model if name in RIVALS else contender('ours', arch)
            row['multiply_adds'] = published_operations(counted, shape)
            if name == 'ours' and not args.deploy:  # folded ahead, it is another count
                run_dtype = DTYPES.get(dtype, torch.bfloat16)
                row['run_multiply_adds'] = run_operations(model, shape, device, run_dtype)
        if train:
            row['saved_bytes'] = saved_for_backward(forward, model)
        rows.append(row)
    return rows
