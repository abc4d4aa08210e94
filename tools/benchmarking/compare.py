"""Several contenders at several sizes, taking turns."""

import shlex
import statistics
import sys
from argparse import Namespace

import torch

from cyclemlp_mm.analysis import backbone_multiply_adds
from cyclemlp_mm.checks import check_device, check_writable
from cyclemlp_mm.engine import find_config
from cyclemlp_mm.errors import UserError

from . import measure, report
from .workloads import (
    ARCHS,
    DTYPES,
    MPVIT,
    OWN_FORMS,
    RIVALS,
    Size,
    backbone_workload,
    config_workload,
    contender,
)

#: torchvision has no deform_conv2d for these.
IMPOSSIBLE = [
    (form, dtype)
    for form in ('published', 'published_compiled')
    for dtype in ('bfloat16', 'float16')
]


def measure_all(args: Namespace) -> None:
    """Check the arguments, measure the machine and all contenders, print and write the results."""
    for arch in set(args.arch).difference(ARCHS):
        raise UserError(f'--arch must be of {", ".join(ARCHS)}, but got {arch}')
    args.device = device = torch.device(check_device(args.device))
    check_writable(args.out, '--out', is_folder=True)
    for config in args.config or ():  # a wrong name ends it before the machine is measured
        find_config(config)
    if args.threads:
        torch.set_num_threads(args.threads)
    rates = {d: measure.matmul_rate(device, DTYPES[d]) for d in args.dtype if d in DTYPES}
    facts = dict(
        measure.describe(device),
        command=shlex.join(['tools/benchmark.py', *sys.argv[1:]]),
        matmul_operations_per_s=rates,
        copy_bytes_per_s=measure.copy_bandwidth(device),
    )
    for key, value in facts.items():
        print(f'{key}: {value}')
    for form, dtype in IMPOSSIBLE:
        if form in args.forms and dtype in args.form_dtype:
            print(f'not measured: the {form} form in {dtype} (torchvision has no such operator)')
    rows = []
    for size in args.size:
        for arch in args.config or args.arch:
            forms = [f for f in args.forms if f in OWN_FORMS or not arch.startswith(MPVIT)]
            if arch == args.arch[-1] and not args.config:  # once per size
                forms += args.rivals
            entries = [('ours', dtype) for dtype in args.dtype]
            entries += [(form, dtype) for form in forms for dtype in args.form_dtype]
            entries = [entry for entry in entries if entry not in IMPOSSIBLE]
            found = compare(entries, arch, size, args)
            rows += found
            report.add_ratios(rows, rates)
            print('\n' + report.table(found), flush=True)
    report.write(rows, facts, args.out)
    print(f'\nwritten: {args.out}/benchmark.csv, .json, .png')


def compare(entries: list[tuple], arch: str, size: Size, args: Namespace) -> list[dict]:
    """Time contenders in turns: one round runs each once, so that a slow spell hits all of them.

    ``entries`` are contenders and their dtypes, ``arch`` is one of ``ARCHS`` or a config. Returns a
    row per entry: median and quartiles in milliseconds, images per second, peak memory and bytes
    kept for backward; multiply-adds of backbones.
    """
    train, device = args.mode == 'train', args.device
    torch.compiler.reset()  # it compiles one function eight times, and gives up
    make = config_workload if args.config else backbone_workload
    work = {(name, dtype): make(name, arch, dtype, size, args) for name, dtype in entries}
    calls = {entry: workload.call(train) for entry, workload in work.items()}
    seconds = {entry: [] for entry in calls}
    for turn in range(args.repeats + 2):
        for entry, call in calls.items():
            taken = measure.timed(call, device)
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
            peak_bytes=measure.peak_memory(calls[name, dtype], device),
        )
        model, forward, shape = work[name, dtype]
        if not args.config:
            # A counter cannot see deform_conv2d; every form of ours has the same count.
            counted = model if name in RIVALS else contender('ours', arch)
            row['multiply_adds'] = backbone_multiply_adds(measure.on_meta(counted), shape)
            if name == 'ours' and not args.deploy:  # folded ahead, it is another count
                run_dtype = DTYPES.get(dtype, torch.bfloat16)
                row['run_multiply_adds'] = measure.run_operations(model, shape, device, run_dtype)
        if train:
            row['saved_bytes'] = measure.saved_for_backward(forward, model)
        rows.append(row)
    return rows
