"""A model into a file, which appears only once it was checked."""

import importlib
import io
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.errors import MissingToolboxError, UserError

from .check import check_operators, largest_difference, runner
from .detectors import without_threshold
from .parts import ExportedPart
from .plain import plain_form

SUFFIXES = ('.onnx', '.pt2')
OPSETS = range(11, 21)
#: Axes of the image that are not fixed, by the names that they have in the file.
FREE_AXES = {0: 'batch', 2: 'height', 3: 'width'}


@dataclass(frozen=True)
class ExportReport:
    """The file, its part, names of its outputs, and smallest side of an image.

    ``difference`` is the largest from PyTorch, relative, at ``checked``: (batch, height, width).
    """

    path: Path
    part: str
    outputs: tuple[str, ...]
    difference: float
    checked: tuple[tuple[int, int, int], ...]
    min_side: int
    channels: int = 3
    any_batch: bool = True

    def __str__(self) -> str:
        shapes = ', '.join('x'.join(map(str, (b, self.channels, h, w))) for b, h, w in self.checked)
        what = f'wrote {self.path} (output: {", ".join(self.outputs)})'
        difference = f'Largest relative difference from PyTorch {self.difference:.1e} at {shapes}'
        batch = 'Any batch size' if self.any_batch else 'One image at once'
        return f'{what}. {difference}. {batch}, minimum side {self.min_side} px'


def export_model(
    model: nn.Module,
    path: str | Path,
    part: str | None = None,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    opset: int = 20,
    constant_weights: bool = False,
) -> ExportReport:
    """Export a model for any batch, height and width, with standard operators only.

    A whole detector takes one image at once.

    Before the file appears it is run, at sizes other than the one exported, against the model.

    Args:
        model (nn.Module): Of mmdet, mmseg or mmpretrain; is put in eval mode and on the CPU.
        path (str | Path): ``.onnx`` or ``.pt2`` (``torch.export``).
        part (str, optional): See :class:`~cyclemlp_mm.export.ExportedPart`.
        metadata (Mapping[str, str], optional): Written into an ONNX file.
        force (bool): Replace a file that is there. Defaults to False.
        opset (int): Of an ONNX file, 11 to 20. Defaults to 20.
        constant_weights (bool): For quantisation tools, see
            :func:`~cyclemlp_mm.export.plain_form`. Defaults to False.

    Returns:
        ExportReport: What was written and how it was checked.

    Raises:
        UserError: The suffix, part or opset is unknown, the file is there, the check failed, or
            the file cannot be written; nothing is written then.
        MissingToolboxError: onnx, onnxscript or onnxruntime is not installed.
    """
    path = Path(path)
    check_target(path, force)
    if opset not in OPSETS:
        raise UserError(f'the opset must be {OPSETS[0]} to {OPSETS[-1]}, but got {opset}')
    if path.suffix == '.onnx':
        _require_onnx()
    kinds = {str(p.dtype) for p in model.parameters() if p.is_floating_point()} - {'torch.float32'}
    if kinds or any(p.is_meta for p in model.parameters()):
        what = ', '.join(kinds) or 'meta tensors'
        raise UserError(f'a model of {what} is not exported: use float32 weights, model.float()')
    module = ExportedPart(model.cpu(), part)
    whole = module.is_whole_detector
    if whole and (path.suffix != '.onnx' or opset < 16):
        fix = 'Take .onnx and an opset from 16 on, or --part neck'
        raise UserError(f'--part model of a detector: no {path.suffix} of opset {opset}. {fix}')
    side = module.min_side
    shapes = ((1, side + 60, side + 33), (1 if whole else 3, side + 9, side + 76))
    every = 0.0
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{path.stem}.{os.getpid()}.draft{path.suffix}')
    try:
        if whole:  # also compared without the threshold: random images hold few objects
            with without_threshold(model):
                _save_onnx(module, constant_weights, draft, opset, {})
                every = largest_difference(module, runner(draft), shapes)
        if path.suffix == '.onnx':
            _save_onnx(module, constant_weights, draft, opset, dict(metadata or {}))
            check_operators(draft)
        else:
            content = io.BytesIO()  # on a full disk, PyTorch's own writer ends the process
            torch.export.save(_capture(module, constant_weights), content)
            draft.write_bytes(content.getbuffer())
        difference = max(largest_difference(module, runner(draft), shapes), every)
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error})') from error
    finally:
        with suppress(OSError):  # it would hide the error that led here
            draft.unlink(missing_ok=True)
    names = module.output_names
    how = shapes, side, module.channels, not whole
    return ExportReport(path, module.part, names, difference, *how)


def check_target(path: Path, force: bool) -> None:
    """Raise UserError where an exported file of this name cannot be written, or is there."""
    if path.suffix not in SUFFIXES:
        raise UserError(f'cannot export to {path}: it must end in {" or ".join(SUFFIXES)}')
    if path.exists() and not force:
        raise UserError(f'{path} is there already: choose another name, or --force to replace it')
    check_writable(path, 'DST')


def _capture(module: ExportedPart, constant_weights: bool) -> torch.export.ExportedProgram:
    """The graph, with batch, height and width left open; PyTorch raises where one gets fixed."""
    least = {axis: module.min_side if axis else 1 for axis in FREE_AXES}
    sizes = {i: torch.export.Dim(name, min=least[i]) for i, name in FREE_AXES.items()}
    shapes = {'image': sizes}
    with torch.no_grad():
        plain = plain_form(module, constant_weights)
        return torch.export.export(plain, _example(module), dynamic_shapes=shapes)


def _example(module: ExportedPart) -> tuple[torch.Tensor]:
    batch = 1 if module.is_whole_detector else 2
    return (torch.zeros(batch, module.channels, module.min_side + 60, module.min_side + 92),)


def _save_onnx(
    module: ExportedPart, constant_weights: bool, path: Path, opset: int, metadata: dict[str, str]
) -> None:
    """Write by the exporter of torch.export from opset 18 on, its oldest; below, TorchScript's.

    TorchScript's also writes whole detectors: torch.export records no choice of boxes.
    """
    import onnx

    names = dict(input_names=['image'], output_names=list(module.output_names))
    options = dict(names, opset_version=opset)
    free, whole = {'image': dict(FREE_AXES)}, module.is_whole_detector
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # about what the exporters' own parts will drop one day
        if opset >= 18 and not whole:  # here dynamic_shapes only names the axes
            options |= dict(dynamo=True, verbose=False, dynamic_shapes=free)
            torch.onnx.export(_capture(module, constant_weights), **options).save(str(path))
        else:
            if whole:
                free['image'].pop(0)
            free |= {name: {0: 'objects' if whole else 'batch'} for name in module.output_names}
            plain = plain_form(module.to_record(), constant_weights)
            options['dynamic_axes'] = free
            torch.onnx.export(plain, _example(module), str(path), dynamo=False, **options)
    model = onnx.load(str(path))
    # onnxruntime's quantisation would take these old shapes of inner values for its own.
    del model.graph.value_info[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, str(path))


def _require_onnx() -> None:
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            importlib.import_module(name)
        except ImportError as error:
            what = f'exporting to ONNX needs {name}, which cannot be imported ({error})'
            fix = "pip install 'cyclemlp_mm[export]', or export to .pt2"
            raise MissingToolboxError(f'{what}: {fix}') from error
