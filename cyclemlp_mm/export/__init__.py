"""Models out of PyTorch: ONNX and ``torch.export``, each file checked before it is kept."""

from .parts import PARTS, ExportedPart
from .plain import plain_form
from .write import OPSETS, SUFFIXES, ExportReport, export_model

__all__ = [
    'OPSETS',
    'PARTS',
    'SUFFIXES',
    'ExportReport',
    'ExportedPart',
    'export_model',
    'plain_form',
]
