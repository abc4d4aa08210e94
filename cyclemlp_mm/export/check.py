"""Whether an exported file computes what the model does, and with standard operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cyclemlp_mm.errors import UserError

from .parts import ExportedPart

#: Largest difference allowed, of the largest absolute value of an output.
TOLERANCE = 1e-4

Runner = Callable[[Tensor], 'list[Tensor]']


def largest_difference(
    module: ExportedPart, run: Runner, shapes: Sequence[tuple[int, int, int]]
) -> float:
    """Run both on random images and compare.

    Args:
        module (ExportedPart): The model, as PyTorch runs it.
        run (Callable): What was exported: an image (B, C, H, W) to a list of outputs.
        shapes (Sequence[tuple[int, int, int]]): (batch, height, width) of each image.

    Returns:
        float: The largest difference, relative to the largest absolute value of its output.

    Raises:
        UserError: It is above the tolerance, or a shape differs; says at which size.
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        image = torch.randn(batch, module.channels, height, width, generator=generator)
        with torch.no_grad():
            expected = module(image)
        for i, (ours, theirs) in enumerate(zip(expected, run(image), strict=True)):
            where = f'output {i} for an image of {batch}x{module.channels}x{height}x{width}'
            if ours.shape != theirs.shape:
                raise UserError(
                    f'the exported model differs from PyTorch: {where} has shape '
                    f'{tuple(theirs.shape)} instead of {tuple(ours.shape)}; nothing was written'
                )
            difference = float((ours - theirs).abs().max() / ours.abs().max())
            if not difference <= TOLERANCE:  # nan is not
                raise UserError(
                    f'the exported model differs from PyTorch: {where} by {difference:.1e} '
                    f'relative, allowed is {TOLERANCE:.0e}; nothing was written'
                )
            worst = max(worst, difference)
    return worst


def onnx_runner(path: Path, num_threads: int | None = None) -> Runner:
    """Run an ONNX file with onnxruntime on the CPU.

    Args:
        path (Path): The file.
        num_threads (int, optional): Defaults to PyTorch's number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name

    def run(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, {name: image.numpy()})]

    return run


def program_runner(path: Path) -> Runner:
    """Run a ``torch.export`` file."""
    program = torch.export.load(path).module()

    def run(image: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(program(image))

    return run


def refuse_custom_operators(path: Path) -> int:
    """Check that an ONNX file is valid and holds ONNX's own operators only.

    Returns:
        int: Number of nodes.

    Raises:
        UserError: It holds others; names them.
    """
    import onnx

    onnx.checker.check_model(str(path))
    model = onnx.load(str(path), load_external_data=False)
    nodes = list(_nodes(model.graph))
    foreign = [node for node in nodes if node.domain not in ('', 'ai.onnx')]
    others = {f'{node.domain}::{node.op_type}' for node in foreign}
    others |= {f'{function.domain}::{function.name}' for function in model.functions}
    if others:
        raise UserError(
            f"the exported graph holds operators that are not ONNX's own: {sorted(others)}; "
            'nothing was written'
        )
    return len(nodes)


def _nodes(graph) -> Iterator:
    """Nodes of an ``onnx.GraphProto`` and of the graphs inside of them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
