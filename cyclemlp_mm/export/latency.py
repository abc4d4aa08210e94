"""How long an exported file and the model take, measured side by side."""

from __future__ import annotations

import statistics
import time

import torch

from .check import Runner
from .parts import ExportedPart


def latencies(
    module: ExportedPart, run: Runner, shape: tuple[int, int, int], repeats: int = 10
) -> tuple[float, float]:
    """Median seconds per image batch of PyTorch and of the exported file, on the CPU.

    The two take turns, so that what else the machine does meets both alike.

    Args:
        module (ExportedPart): The model, as PyTorch runs it.
        run (Callable): What was exported.
        shape (tuple[int, int, int]): (batch, height, width).
        repeats (int): Measurements of each, after two of warm-up. Defaults to 10.

    Returns:
        tuple[float, float]: PyTorch, exported.
    """
    batch, height, width = shape
    image = torch.randn(batch, module.channels, height, width)
    taken = {module: [], run: []}
    with torch.inference_mode():
        for i in range(repeats + 2):
            for function, seconds in taken.items():
                begun = time.perf_counter()
                function(image)
                if i >= 2:
                    seconds.append(time.perf_counter() - begun)
    return statistics.median(taken[module]), statistics.median(taken[run])
