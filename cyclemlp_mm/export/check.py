"""Whether an exported file computes what the model does, with standard operators, and how fast."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cyclemlp_mm.errors import UserError

from .detectors import objects_differ
from .parts import ExportedPart

TOLERANCE = 1e-4  # largest difference allowed, of the largest absolute value of an output
Runner = Callable[[Tensor], Sequence[Tensor]]  # from an image (B, C, H, W) to its outputs


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
    """The largest difference of an exported file from its model on random images.

    It is relative to the largest absolute value of its output; ``shapes`` are (batch, height,
    width). Raises a UserError above the tolerance, or where shapes differ. Objects of a detector
    are compared by :func:`.detectors.objects_differ`.
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        image = torch.randn(batch, module.channels, height, width, generator=generator)
        with torch.no_grad():
            expected, got = module(image), run(image)
        if module.is_whole_detector:
            difference = objects_differ(expected, got, TOLERANCE)
            if math.isinf(difference):
                counts = f'{len(got[0])} objects, mmdet finds {len(expected[0])}'
                raise UserError(
                    'the exported detector differs from mmdet: in a random image of '
                    f'{height}x{width}, it finds {counts}, of which fewer than 95% are the same; '
                    'nothing was written'
                )
            worst = max(worst, difference)
            continue
        for i, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
            same = ours.shape == theirs.shape
            difference = float((ours - theirs).abs().max() / ours.abs().max()) if same else math.inf
            if not difference <= TOLERANCE:  # nan is not
                raise UserError(
                    f'the exported model differs from PyTorch: output {i} for an image of '
                    f'{"x".join(map(str, image.shape))} by {difference:.1e} relative (shapes '
                    f'{tuple(theirs.shape)}, {tuple(ours.shape)}); nothing was written'
                )
            worst = max(worst, difference)
    return worst


def check_operators(path: Path) -> None:
    """Raise UserError where an ONNX file holds operators that are not ONNX's own; names them."""
    import onnx

    onnx.checker.check_model(str(path))
    model = onnx.load(str(path), load_external_data=False)
    nodes = [node for node in _nodes(model.graph) if node.domain not in ('', 'ai.onnx')]
    others = {f'{node.domain}::{node.op_type}' for node in nodes}
    others |= {f'{function.domain}::{function.name}' for function in model.functions}
    if others:
        what = f"the exported graph holds operators that are not ONNX's own: {sorted(others)}"
        raise UserError(f'{what}; nothing was written')


def _nodes(graph: object) -> Iterator:
    """Nodes of an ``onnx.GraphProto`` and of the graphs inside of them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def latencies(
    runs: Mapping[str, Runner], shape: tuple[int, int, int, int], repeats: int = 10
) -> dict[str, float]:
    """Median seconds of each of ``runs`` for an image (B, C, H, W), measured in turns."""
    image = torch.randn(shape)
    taken = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(repeats + 2):
            for name, run in runs.items():
                start = time.perf_counter()
                run(image)
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[2:]) for name, seconds in taken.items()}
