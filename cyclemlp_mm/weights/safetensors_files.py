"""``.safetensors`` files, in and out, by the library of that name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cyclemlp_mm.errors import UserError

from .allowed_types import DamagedFile

#: Our key in a file's metadata: class names and colours, as JSON.
DATASET_META = 'dataset_meta'
_METADATA = '__metadata__'
_LARGEST_HEADER = 100_000_000  # the format's own limit


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``head`` (9 bytes) is of this format."""
    # A length that is too large still makes it one: a truncated one, which is worth saying.
    return head[8:9] == b'{' and _header_size(head) <= max(size, _LARGEST_HEADER)


def _header_size(content: bytes) -> int:
    return int.from_bytes(content[:8], 'little')


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(f'safetensors files need it ({error}): pip install safetensors') from error
    return safetensors


def read_safetensors(content: bytes) -> dict[str, object]:
    """Names to tensors, on the CPU; under ``state_dict`` where we wrote class names with them."""
    safetensors = _library()
    try:
        state_dict = safetensors.torch.load(content)
        metadata = json.loads(content[8 : 8 + _header_size(content)]).get(_METADATA) or {}
        if DATASET_META in metadata:
            meta = {DATASET_META: json.loads(metadata[DATASET_META])}
            return {'state_dict': state_dict, 'meta': meta}
    except safetensors.SafetensorError as error:
        raise DamagedFile(f'the safetensors library reports: {error}') from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile('its metadata are not JSON') from error
    return state_dict


def to_safetensors(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Names, tensors and metadata as the content of a file: the same each time."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state_dict.items()}
    try:
        content = _library().torch.save(tensors)
    except KeyError as error:
        raise DamagedFile(f'a tensor is of {error}, which safetensors does not have') from error
    # The library (0.8) writes several metadata in an order that differs from run to run.
    size = _header_size(content)
    header = {_METADATA: dict(metadata), **json.loads(content[8 : 8 + size])}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, 'little') + text + content[8 + size :]
