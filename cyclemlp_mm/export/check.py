"""Whether an exported file computes what the model does, with standard operators, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cyclemlp_mm.errors import UserError

from .parts import ExportedPart

#: Largest difference allowed, of the largest absolute value of an output.
TOLERANCE = 1e-4

#: A file or a model, ready to run: from an image (B, C, H, W) to its outputs.
Runner = Callable[[Tensor], Sequence[Tensor]]


def runner(path: Path) -> Runner:
    """Load an exported file to run it on the CPU, with as many threads as PyTorch has."""
    if path.suffix != '.onnx':
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda image: [torch.from_numpy(y) for y in session.run(None, {name: image.numpy()})]


def largest_difference(
    module: ExportedPart, run: Runner, shapes: Sequence[tuple[int, int, int]]
) -> float:
    """Compare an exported file with its model on random images.

    Args:
        module (ExportedPart): The model, as PyTorch runs it.
        run (Callable): See :func:`runner`.
        shapes (Sequence[tuple[int, int, int]]): (batch, height, width) of each image.

    Returns:
        float: The largest difference, relative to the largest absolute value of its output.

    Raises:
        UserError: It is above the tolerance, or a shape differs; names the size.
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        image = torch.randn(batch, module.channels, height, width, generator=generator)
        with torch.no_grad():
            outputs = list(zip(module(image), run(image), strict=True))
        for i, (ours, theirs) in enumerate(outputs):
            problem = None
            if ours.shape != theirs.shape:
                problem = f'has shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}'
            else:
                difference = float((ours - theirs).abs().max() / ours.abs().max())
                if not difference <= TOLERANCE:  # nan is not
                    problem = f'by {difference:.1e} relative, allowed is {TOLERANCE:.0e}'
            if problem:
                raise UserError(
                    f'the exported model differs from PyTorch: output {i} for an image of '
                    f'{"x".join(map(str, image.shape))} {problem}; nothing was written'
                )
            worst = max(worst, difference)
    return worst


def check_operators(path: Path) -> None:
    """Raise UserError where an ONNX file holds operators that are not ONNX's own; names them."""
    import onnx

    onnx.checker.check_model(str(path))
    model = onnx.load(str(path), load_external_data=False)
    others = {
        f'{node.domain}::{node.op_type}'
        for node in _nodes(model.graph)
        if node.domain not in ('', 'ai.onnx')
    }
    others |= {f'{function.domain}::{function.name}' for function in model.functions}
    if others:
        raise UserError(
            f"the exported graph holds operators that are not ONNX's own: {sorted(others)}; "
            'nothing was written'
        )


def _nodes(graph: object) -> Iterator:
    """Nodes of an ``onnx.GraphProto`` and of the graphs inside of them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def latencies(
    module: ExportedPart, run: Runner, shape: tuple[int, int, int], repeats: int = 10
) -> tuple[float, float]:
    """Measure the median seconds of PyTorch and of an exported file for a batch, in turns.

    ``shape`` is (batch, height, width); two rounds of warm-up come before ``repeats`` measurements.
    """
    batch, height, width = shape
    image = torch.randn(batch, module.channels, height, width)
    taken = {module: [], run: []}
    with torch.inference_mode():
        for _ in range(repeats + 2):
            for function, seconds in taken.items():
                start = time.perf_counter()
                function(image)
                seconds.append(time.perf_counter() - start)
    return tuple(statistics.median(seconds[2:]) for seconds in taken.values())
