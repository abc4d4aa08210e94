"""``.safetensors`` files, in and out.

Read by the library of that name. Not written by it: what it writes (0.8.0) differs from run to run
where the metadata has more than one entry, so a conversion's SHA-256 would say nothing. The format:
8 bytes, the length of a header; the header, JSON, name to type, shape and place of each tensor;
then the bytes of the tensors, little-endian, without gaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from cyclemlp_mm.errors import UserError

from .limits import DamagedFile

#: Our key in a file's metadata: class names and colours, as JSON.
DATASET_META = 'dataset_meta'
_METADATA = '__metadata__'
_LENGTH_SIZE = 8
_LARGEST_HEADER = 100_000_000  # the format's own limit
_NAMES = {
    torch.float64: 'F64',
    torch.float32: 'F32',
    torch.float16: 'F16',
    torch.bfloat16: 'BF16',
    torch.int64: 'I64',
    torch.int32: 'I32',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``head`` (9 bytes) is of this format."""
    if len(head) < _LENGTH_SIZE + 1 or head[_LENGTH_SIZE : _LENGTH_SIZE + 1] != b'{':
        return False
    # A length that is too large still makes it one: a truncated one, which is worth saying.
    return struct.unpack('<Q', head[:_LENGTH_SIZE])[0] <= max(size, _LARGEST_HEADER)


def read_safetensors(content: bytes) -> dict[str, object]:
    """Names to tensors, on the CPU; under ``state_dict`` where we wrote class names beside them.

    Raises:
        DamagedFile: It is truncated or changed.
        UserError: The library is not installed.
    """
    try:
        import safetensors
        from safetensors.torch import load
    except ImportError as error:
        raise UserError(
            f'reading safetensors files needs the library safetensors ({error}): '
            '`pip install safetensors`'
        ) from error
    try:
        state_dict = load(content)
        length = struct.unpack('<Q', content[:_LENGTH_SIZE])[0]
        metadata = json.loads(content[_LENGTH_SIZE : _LENGTH_SIZE + length]).get(_METADATA) or {}
        if DATASET_META in metadata:
            meta = {DATASET_META: json.loads(metadata[DATASET_META])}
            return {'state_dict': state_dict, 'meta': meta}
    except safetensors.SafetensorError as error:
        raise DamagedFile(f'the safetensors library says: {error}') from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile('its metadata are not JSON') from error
    return state_dict


def write_safetensors(
    state_dict: Mapping[str, Tensor], file: BinaryIO, metadata: Mapping[str, str]
) -> None:
    """Write names and tensors.

    Args:
        state_dict (Mapping[str, Tensor]): Any of the ten types that the format and torch share.
        file (BinaryIO): Where to write.
        metadata (Mapping[str, str]): Free text, kept in the header.

    Raises:
        DamagedFile: A tensor of another type.
    """
    header: dict[str, object] = {_METADATA: dict(metadata)}
    at = 0
    for name, tensor in state_dict.items():
        if tensor.dtype not in _NAMES:
            raise DamagedFile(f'{name} is of {tensor.dtype}, which safetensors does not have')
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {
            'dtype': _NAMES[tensor.dtype],
            'shape': list(tensor.shape),
            'data_offsets': [at, end],
        }
        at = end
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # so that the tensors are aligned
    file.write(struct.pack('<Q', len(text)))
    file.write(text)
    for tensor in state_dict.values():
        flat = tensor.detach().cpu().contiguous().flatten()
        file.write(flat.view(torch.uint8).numpy() if flat.numel() else b'')
