"""Files that ``torch.save`` wrote: zip files, or (before 1.6) one pickle after another."""

import io
import math
from typing import BinaryIO

import torch
from torch import Tensor

from .limits import Budget, DamagedFile, RefusedContent, shorten
from .pickle_reader import Known, PickleReader
from .pickle_tree import check_tree
from .pickle_types import PLAIN_TYPES, check_sizes
from .zip_records import ZipRecords

#: The first pickle of a legacy file.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_STORAGES = {
    'DoubleStorage': torch.float64, 'FloatStorage': torch.float32, 'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
    'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool, 'ComplexDoubleStorage': torch.complex128,
    'ComplexFloatStorage': torch.complex64,
}  # fmt: skip
# Newer types exist only in newer versions of torch.
_DTYPES = [*_STORAGES.values()] + [
    getattr(torch, name) for name in ('uint16', 'uint32', 'uint64', 'float8_e4m3fn', 'float8_e5m2')
    if hasattr(torch, name)
]  # fmt: skip


class _StorageType(Known):
    """A storage class: the type of the numbers behind a tensor."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        super().__init__(name)
        self.dtype = dtype


class _Storage:
    """The bytes behind tensors, and the type that they were stored as."""

    def __init__(self, content: bytearray, dtype: torch.dtype) -> None:
        self.content, self.dtype = content, dtype
        # An empty buffer is refused by frombuffer; the storage cannot grow, which is as well.
        self.flat = (
            torch.frombuffer(content, dtype=torch.uint8)
            if content
            else torch.empty(0, dtype=torch.uint8)
        )


def read_zip(file: BinaryIO, size: int, budget: Budget) -> object:
    """What a zip file of ``torch.save`` holds, tensors on the CPU.

    Raises:
        DamagedFile: It is truncated or changed.
        RefusedContent: It holds an object of a type that is not allowed.
    """
    records = ZipRecords(file, size, budget)
    # First, since a program's code is compressed.
    if any(name.endswith('/constants.pkl') and name.count('/') == 1 for name in records):
        raise RefusedContent(
            'it is a TorchScript program, not weights: save the state_dict() of the module'
        )
    if records.packed is not None:
        raise RefusedContent(
            f'its record {shorten(records.packed)} is compressed or encrypted, which torch.save '
            'never does: unpack it, and save it with torch.save'
        )
    pickles = [name for name in records if name.endswith('/data.pkl') and name.count('/') == 1]
    if len(pickles) != 1:
        raise DamagedFile('it is a zip file, but not of torch.save: it holds no data.pkl')
    root = pickles[0].removesuffix('data.pkl')
    if f'{root}byteorder' in records and records.read(f'{root}byteorder') != b'little':
        raise RefusedContent('it was written on a big-endian machine')
    storages: dict[str, _Storage] = {}

    def load_storage(pid: object) -> _Storage:
        dtype, key, count = _check_storage_id(pid, 5)
        if key not in storages:
            content = records.read(f'{root}data/{key}')
            storages[key] = _Storage(content, dtype)
        if count * dtype.itemsize != len(storages[key].content):
            raise DamagedFile(
                f'a tensor declares {count} numbers of {dtype}, but has '
                f'{len(storages[key].content)} bytes of data'
            )
        return _same_bytes(storages[key], dtype)

    pickled = records.read(pickles[0])
    reader = PickleReader(io.BytesIO(pickled), len(pickled), _ALLOWED, budget, load_storage)
    content = reader.load()
    check_tree(content, len(pickled), budget)
    return content


def read_legacy(reader: PickleReader, file: BinaryIO, size: int, budget: Budget) -> object:
    """What a legacy file of ``torch.save`` holds, tensors on the CPU.

    Args:
        reader (PickleReader): Just behind the magic number.
        file (BinaryIO): What it reads from.
        size (int): Bytes of the file.
        budget (Budget): What is paid from.

    Raises:
        DamagedFile: It is truncated or changed.
        RefusedContent: It holds an object of a type that is not allowed.
    """
    if reader.load() != _LEGACY_PROTOCOL:
        raise DamagedFile('it was written by an unknown version of torch')
    system = reader.load()
    if isinstance(system, dict) and system.get('little_endian') is False:
        raise RefusedContent('it was written on a big-endian machine')
    storages: dict[str, _Storage] = {}

    def declare_storage(pid: object) -> _Storage:
        # Its bytes come after the pickle: here they are only made room for.
        dtype, key, count = _check_storage_id(pid, 6)
        if key not in storages:
            if count * dtype.itemsize > reader.left:
                raise DamagedFile(f'a tensor declares {count} numbers of {dtype}: it ends early')
            budget.spend(count * dtype.itemsize)
            storages[key] = _Storage(bytearray(count * dtype.itemsize), dtype)
        if count * dtype.itemsize != len(storages[key].content):
            raise DamagedFile('two tensors disagree on the size of the data they share')
        return _same_bytes(storages[key], dtype)

    start = reader.left
    objects = PickleReader(file, reader.left, _ALLOWED, budget, declare_storage)
    content = objects.load()
    reader.left = objects.left
    check_tree(content, start - reader.left, budget)
    keys = reader.load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise DamagedFile('the list of its tensors does not fit its tensors')
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(reader.read(8), 'little')
        if count * storage.dtype.itemsize != len(storage.content):
            raise DamagedFile('a tensor has another size than it declares')
        if len(storage.content) > reader.left:
            raise DamagedFile('it ends early')
        reader.left -= len(storage.content)
        if storage.content and file.readinto(storage.content) != len(storage.content):
            raise DamagedFile('it ends early')
    return content


def _check_storage_id(pid: object, length: int) -> 'tuple[torch.dtype, str, int]':
    """Type, key and count out of ('storage', type, key, location, count[, view])."""
    if not isinstance(pid, tuple) or len(pid) != length or pid[0] != 'storage':
        raise RefusedContent('it refers to something outside of its pickle that is no tensor data')
    _, kind, key, _, count, *view = pid
    if not isinstance(kind, _StorageType) or not isinstance(key, str):
        raise DamagedFile('the data of a tensor has no type or no name')
    if view not in ([], [None]):
        raise RefusedContent('it was written by torch 0.3 or older: save it anew')
    return kind.dtype, key, check_sizes((count,), 'size')[0]


def _same_bytes(storage: _Storage, dtype: torch.dtype) -> _Storage:
    if storage.dtype == dtype:
        return storage
    other = object.__new__(_Storage)
    other.content, other.flat, other.dtype = storage.content, storage.flat, dtype
    return other


def _tensor(
    budget: Budget,
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    *more: object,
) -> Tensor:
    return _view(storage, storage.dtype, offset, size, stride, requires_grad)


def _tensor_v3(
    budget: Budget,
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    *more: object,
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise DamagedFile('a tensor has no type')
    return _view(storage, dtype, offset, size, stride, requires_grad)


def _view(
    storage: object, dtype: torch.dtype, offset: object, size: object, stride: object, grad: object
) -> Tensor:
    """A tensor on a storage, refused where it reaches beyond it, or is larger than it."""
    if not isinstance(storage, _Storage):
        raise DamagedFile('a tensor has no data')
    size, stride = check_sizes(size, 'size'), check_sizes(stride, 'stride')
    (offset,) = check_sizes((offset,), 'offset')
    count = math.prod(size)
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride)) if count else 0
    available = len(storage.content) // dtype.itemsize
    # Rows that overlap (an expanded tensor) could stand for any number of copies.
    steps = sorted((step, n) for n, step in zip(size, stride) if n > 1)
    apart = all(n * step <= above for (step, n), (above, _) in zip([(1, 1), *steps], steps))
    if len(size) != len(stride) or reach > available or (count and not apart):
        raise DamagedFile(
            f'a tensor declares shape {size} of {dtype} with strides {stride} from {offset}, but '
            f'its data are {available} numbers'
        )
    if not count:
        return torch.empty(size, dtype=dtype)
    flat = torch.empty(0, dtype=dtype).set_(
        storage.flat.untyped_storage(), offset, size, stride
    )
    return flat.requires_grad_() if grad is True and flat.is_floating_point() else flat


def _parameter(budget: Budget, data: object, requires_grad: object, hooks: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise DamagedFile('a parameter has no data')
    return torch.nn.Parameter(data.detach(), bool(requires_grad) and data.is_floating_point())


def _parameter_with_attributes(
    budget: Budget, data: object, requires_grad: object, hooks: object, attributes: object
) -> Tensor:
    return _parameter(budget, data, requires_grad, hooks)


def _tensor_with_attributes(
    budget: Budget, function: object, kind: object, arguments: object, attributes: object
) -> Tensor:
    """A tensor that Python attributes were set on, as FSDP does; they are no weights, and dropped.

    Of another class than ``Tensor``, it is refused by that class's name before it comes here.
    """
    is_known = any(function is known for known in _REBUILD)
    if not is_known or kind is not _TENSOR or not isinstance(arguments, tuple):
        raise RefusedContent('it holds a tensor that is to be rebuilt in an unknown way')
    return function.call(budget, *arguments)


#: The class itself, which stands in a file beside the tensors with attributes.
_TENSOR = Known('torch.Tensor')
_REBUILD = (
    Known('torch._utils._rebuild_tensor', _tensor),
    Known('torch._utils._rebuild_tensor_v2', _tensor),
    Known('torch._utils._rebuild_tensor_v3', _tensor_v3),
)
_ALLOWED: 'dict[str, object]' = {
    **PLAIN_TYPES,
    **{
        known.name: known
        for known in (
            *_REBUILD,
            _TENSOR,
            Known('torch._tensor._rebuild_from_type_v2', _tensor_with_attributes),
            Known('torch._utils._rebuild_parameter', _parameter),
            Known('torch._utils._rebuild_parameter_with_state', _parameter_with_attributes),
            *(_StorageType(f'torch.{name}', dtype) for name, dtype in _STORAGES.items()),
            *(_StorageType(f'torch.cuda.{name}', dtype) for name, dtype in _STORAGES.items()),
            _StorageType('torch.storage.UntypedStorage', torch.uint8),
        )
    },
    **{str(dtype): dtype for dtype in _DTYPES},
}
