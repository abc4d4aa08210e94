"""``.safetensors`` files, in and out.

The format (github.com/huggingface/safetensors): 8 bytes, the length of a header; the header, JSON,
name to type, shape and place of each tensor; then the tensors' bytes, little-endian, without gaps.

Not by the library of that name, which the tests compare with: what it writes (0.8.0) differs from
run to run where the metadata has more than one entry, so a conversion's SHA-256 would say nothing.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from .limits import Budget, DamagedFile, shorten
from .pickle_types import check_sizes

#: Our key in a file's metadata: class names and colours, as JSON.
DATASET_META = 'dataset_meta'
_METADATA = '__metadata__'
_LENGTH_SIZE = 8
_LARGEST_HEADER = 100_000_000  # the format's own limit
_OBJECTS_PER_BYTE = 16  # parsed JSON against its text, at worst
_DTYPES = {
    'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16,
    'I64': torch.int64, 'I32': torch.int32, 'I16': torch.int16, 'I8': torch.int8,
    'U8': torch.uint8, 'BOOL': torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``head`` (9 bytes) is of this format."""
    if len(head) < _LENGTH_SIZE + 1 or head[_LENGTH_SIZE:_LENGTH_SIZE + 1] != b'{':
        return False
    # A length that is too large still makes it one: a truncated one, which is worth saying.
    return struct.unpack('<Q', head[:_LENGTH_SIZE])[0] <= max(size, _LARGEST_HEADER)


def read_safetensors(file: BinaryIO, size: int, budget: Budget) -> 'dict[str, object]':
    """Names to tensors, on the CPU; under ``state_dict`` where we wrote class names beside them.

    Raises:
        DamagedFile: It is truncated or changed.
    """
    file.seek(0)
    length = struct.unpack('<Q', file.read(_LENGTH_SIZE))[0]
    start = _LENGTH_SIZE + length
    if start > size:
        raise DamagedFile('it ends early')
    budget.spend(_OBJECTS_PER_BYTE * length)
    header = _parse(file.read(length))
    metadata = header.pop(_METADATA, None)
    budget.spend(size - start)
    entries = sorted(
        ((name, *_check_entry(name, entry)) for name, entry in header.items()), key=lambda e: e[3]
    )
    state_dict, at = {}, 0
    for name, dtype, shape, begin, end in entries:
        if begin != at or start + end > size:
            raise DamagedFile(f'its tensor {shorten(name)} does not lie behind the one before it')
        content = bytearray(end - begin)
        if file.readinto(content) != len(content):
            raise DamagedFile('it ends early')
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        state_dict[name] = flat.reshape(shape)
        at = end
    if start + at != size:
        raise DamagedFile(f'{size - start - at} bytes follow its last tensor')
    if isinstance(metadata, dict) and isinstance(metadata.get(DATASET_META), str):
        meta = {DATASET_META: _parse(metadata[DATASET_META])}
        return {'state_dict': state_dict, 'meta': meta}
    return state_dict


def write_safetensors(
    state_dict: 'Mapping[str, Tensor]', file: BinaryIO, metadata: 'Mapping[str, str]'
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
            'dtype': _NAMES[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': [at, end]
        }  # fmt: skip
        at = end
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # so that the tensors are aligned
    file.write(struct.pack('<Q', len(text)))
    file.write(text)
    for tensor in state_dict.values():
        flat = tensor.detach().cpu().contiguous().flatten()
        file.write(flat.view(torch.uint8).numpy() if flat.numel() else b'')


def _parse(text: 'bytes | str') -> dict:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile('its header is no JSON') from error
    if not isinstance(header, dict):
        raise DamagedFile('its header is no table of tensors')
    return header


def _check_entry(name: str, entry: object) -> 'tuple[torch.dtype, tuple[int, ...], int, int]':
    if not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}:
        raise DamagedFile(f'its header does not say what {shorten(name)} is')
    dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise DamagedFile(f'its tensor {shorten(name)} is of the unknown type {shorten(dtype)}')
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise DamagedFile(f'its header does not say where {shorten(name)} is')
    shape = check_sizes(tuple(shape), 'shape')
    begin, end = check_sizes(tuple(offsets), 'place')
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise DamagedFile(
            f'its tensor {shorten(name)} declares shape {shape} of {dtype}, but has '
            f'{end - begin} bytes of data'
        )
    return _DTYPES[dtype], shape, begin, end
