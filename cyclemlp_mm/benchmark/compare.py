"""Several backbones on one size, taking turns."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .contenders import RIVALS, contender
from .machine import peak_memory, timed
from .operations import published_operations, run_operations
from .saved_bytes import saved_for_backward

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


def _call(
    model: nn.Module, image: Tensor, train: bool, autocast: 'torch.dtype | None'
) -> 'Callable[[], object]':
    """One inference, or one training step without the optimiser."""

    def forward() -> 'Sequence[Tensor]':
        context = nullcontext()
        if autocast is not None:
            context = torch.autocast(image.device.type, autocast)
        with context:
            return model(image)

    def infer() -> None:
        with torch.inference_mode():
            forward()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        sum(level.float().square().mean() for level in forward()).backward()

    return step if train else infer


def compare(
    entries: 'Sequence[tuple[str, str]]',
    arch: str,
    size: 'tuple[int, int, int]',
    mode: str,
    device: torch.device,
    repeats: int,
    backend: str = 'auto',
    deploy: bool = False,
) -> 'list[dict]':
    """Time contenders in turns: one round runs each once, so that a slow spell hits all of them.

    Args:
        entries (Sequence[tuple[str, str]]): Contender and dtype; 'amp' trains or infers under
            autocast to bfloat16, any other dtype is that of the weights too.
        arch (str): One of :data:`~cyclemlp_mm.benchmark.contenders.ARCHS`.
        size (tuple[int, int, int]): Batch, height, width.
        mode (str): 'infer' or 'train'.
        device (torch.device): Where.
        repeats (int): Rounds that count; two more come first.
        backend (str): Mixer backend of 'ours'. Defaults to 'auto'.
        deploy (bool): Whether 'ours' is folded, for inference. Defaults to False.

    Returns:
        list[dict]: One row per entry: median and quartiles in milliseconds, images per second, peak
        memory, bytes kept for backward, multiply-adds as published and as run.
    """
    batch, height, width = size
    train = mode == 'train'
    calls, models = {}, {}
    for name, dtype in entries:
        model = contender(name, arch, backend, deploy).to(device).train(train)
        image = torch.randn(batch, 3, height, width, device=device)
        if dtype != 'amp':
            model, image = model.to(DTYPES[dtype]), image.to(DTYPES[dtype])
        if name in RIVALS:
            # The layout that convolutions are fastest in.
            model = model.to(memory_format=torch.channels_last)
            image = image.contiguous(memory_format=torch.channels_last)
        autocast = torch.bfloat16 if dtype == 'amp' else None
        calls[name, dtype] = _call(model, image, train, autocast)
        models[name, dtype] = model, image
    seconds = {entry: [] for entry in calls}
    for turn in range(repeats + 2):
        for entry, call in calls.items():
            taken = timed(call, device)
            if turn >= 2:
                seconds[entry].append(taken)
    rows = []
    for (name, dtype), values in seconds.items():
        model, image = models[name, dtype]
        low, median, high = _quartiles(values)
        row = dict(
            contender=name, arch='' if name in RIVALS else arch, dtype=dtype, mode=mode,
            size=f'{batch}x{height}x{width}', median_ms=1e3 * median, q1_ms=1e3 * low,
            q3_ms=1e3 * high, images_per_s=batch / median, rounds=len(values),
            peak_bytes=peak_memory(calls[name, dtype], device),
            # A counter does not know deform_conv2d; every form of ours has the same count.
            multiply_adds=published_operations(
                model if name in RIVALS else contender('ours', arch), tuple(image.shape)
            ),
        )  # fmt: skip
        if name == 'ours' and not deploy:  # folded ahead, it is another count
            run_dtype = torch.bfloat16 if dtype == 'amp' else DTYPES[dtype]
            row['run_multiply_adds'] = run_operations(
                model, tuple(image.shape), device, run_dtype
            )
        if train:
            context = torch.autocast(device.type, torch.bfloat16, enabled=dtype == 'amp')
            with context:
                row['saved_bytes'] = saved_for_backward(lambda m=model, i=image: m(i), model)
        rows.append(row)
    return rows


def _quartiles(values: 'list[float]') -> 'tuple[float, float, float]':
    if len(values) < 2:
        return values[0], values[0], values[0]
    return tuple(statistics.quantiles(values, n=4, method='inclusive'))
