"""What a pickle may hold, and what is called in place of the functions that it names.

The functions get built arguments, and ``state`` where the pickle sets attributes. Whatever they
raise means that the file is damaged. A further type is one line in ``FUNCTIONS`` or ``_SIMPLE``.
"""

import argparse
import datetime
import math
import pathlib
import re
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor

from cyclemlp_mm.errors import shorten


class DamagedFile(ValueError):
    """The bytes are not what the format says: truncated, changed, or another format."""


class RefusedContent(ValueError):
    """The file is whole, but holds what a checkpoint may not hold."""


def _of_simple_types(kind: Any) -> Callable:
    """Calls a class of the standard library with arguments of simple types only."""
    allowed = {int, float, str, bytes, type(None), datetime.timedelta, datetime.timezone}

    def make(*arguments: object) -> object:
        if not allowed.issuperset(map(type, arguments)):
            raise TypeError
        return kind(*arguments)

    return make


def _encode(text: Any, codec: str = 'latin1') -> bytes:
    """How protocol 2 writes bytes."""
    if codec not in ('latin1', 'latin-1'):
        raise RefusedContent(f'it encodes text as {shorten(codec)}')
    return str.encode(text, 'latin1')


def _bytearray(data: Any = b'', *codec: str) -> bytearray:
    return bytearray(_encode(data, *codec) if codec else memoryview(data))


def _namespace(kind: type) -> Callable:
    def make(*, state: Any = None) -> object:
        made = kind()
        vars(made).update(state or {})  # names may be anything
        return made

    return make


def _type(value: object) -> type:
    if value not in (None, NotImplemented, ...):
        raise RefusedContent(f'it asks for the type of {shorten(value)}')
    return type(value)


def _ordered_dict(entries: list, *, state: Any = None) -> OrderedDict:
    """With the versions of modules, which a state dict has as an attribute; others are dropped."""
    made: Any = OrderedDict(entries)
    metadata = state.get('_metadata') if isinstance(state, dict) else None
    if isinstance(metadata, dict) and all(
        type(entry) is dict and type(entry.get('version', 1)) in (int, type(None))
        for entry in metadata.values()
    ):
        made._metadata = metadata
    return made


def _config_dict(entries: list) -> ConfigDict:
    made = ConfigDict()
    dict.update(made, entries)  # its own method would convert the values
    return made


def _dtype(code: str, *flags: object, state: tuple = (3, '|', None, None, None)) -> np.dtype:
    dtype = np.dtype(code) if re.fullmatch('[<>|=]?[a-zA-Z?][0-9]{0,9}', code) else None
    # The state is (version, byte order, three that only structured types fill, …).
    if dtype is None or dtype.kind not in 'biufcUS' or state[2:5] != (None, None, None):
        raise RefusedContent(f'it holds an array of type {shorten(code)}, not of numbers or text')
    return dtype.newbyteorder('>') if state[1] == '>' else dtype


def _array(data: Any, dtype: np.dtype, shape: tuple, order: Any = 'C', axes: object = None) -> Any:
    if axes is not None:
        raise RefusedContent('it holds an array whose axes are in another order')
    if isinstance(data, str):  # Python 2's bytes
        data = data.encode('utf-8', 'surrogateescape')
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        raise DamagedFile(f'an array of {shorten(size)} bytes has {len(data)} bytes of data')
    return np.ndarray(shape, dtype, bytearray(data) or None, order=order)


def _array_of_state(*always_the_same: object, state: tuple) -> np.ndarray:
    _, shape, dtype, fortran, data = state
    array = _array(data, dtype, shape, 'F' if fortran else 'C')
    return array.astype(dtype.newbyteorder('='), copy=False)  # as numpy does


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return _array(data, dtype, ())[()] if data else dtype.type()


def _history(*, state: dict) -> HistoryBuffer:
    logs, counts = state['_log_history'], state['_count_history']
    if not all(isinstance(array, np.ndarray) and array.ndim == 1 for array in (logs, counts)):
        raise DamagedFile('a HistoryBuffer holds something other than lists of numbers')
    return HistoryBuffer(logs, counts, state.get('max_length', 1_000_000))


def _tensor(
    numbers: Tensor,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool = False,
    hooks: object = None,
    metadata: dict | None = None,
) -> Tensor:
    # Raises where it reaches beyond the data; set_() would let them grow.
    tensor = numbers.as_strided(size, stride, offset)
    # An expanded tensor stands for more numbers than it has, but not for any number of them.
    if min(size, default=0) < 0 or tensor.numel() > 1000 * len(numbers) + 2**20:
        raise DamagedFile(f'a tensor of shape {tuple(size)} has {len(numbers)} numbers')
    if metadata and metadata.get('conj'):
        tensor = tensor.conj()
    if metadata and metadata.get('neg'):
        tensor = torch._neg_view(tensor)
    return tensor.requires_grad_(requires_grad is True and _is_differentiable(tensor))


def _tensor_v3(numbers: Tensor, *arguments: Any) -> Tensor:
    numbers = torch.empty(0, dtype=arguments[5]).set_(numbers.untyped_storage())
    return _tensor(numbers, *arguments[:5], *arguments[6:])


def _parameter(data: Tensor, requires_grad: bool, *hooks_and_attributes: object) -> Tensor:
    return torch.nn.Parameter(data.detach(), bool(requires_grad) and _is_differentiable(data))


def _is_differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _sparse(layout: torch.layout, data: tuple) -> Tensor:
    if layout is torch.sparse_coo:
        indices, values, size, *coalesced = data
        tensor = torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
        return tensor.coalesce() if coalesced == [True] else tensor
    return torch.sparse_compressed_tensor(*data, layout=layout, check_invariants=True)


#: Types that keys of a dict or set may have, besides tuples and frozensets of them.
KEYS = (
    *(str, int, float, bytes, type(None), np.generic, pathlib.PurePath, datetime.date),
    *(datetime.timedelta, torch.dtype, torch.device, uuid.UUID),
)
#: Storage classes, and the type of their numbers.
STORAGES = {
    f'torch.{kind}Storage': getattr(torch, kind.lower())
    for kind in ['Double', 'Float', 'Half', 'BFloat16', 'Long', 'Int', 'Short', 'Bool']
} | {
    'torch.CharStorage': torch.int8,
    'torch.ByteStorage': torch.uint8,
    'torch.ComplexDoubleStorage': torch.complex128,
    'torch.ComplexFloatStorage': torch.complex64,
    'torch.storage.UntypedStorage': torch.uint8,
}
#: Functions whose first argument is the data of a tensor.
TENSORS: dict[str, Callable] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
}
PLAIN_TENSORS = {
    **TENSORS,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
}
#: Containers; the first argument of a dict is a list of keys and values, of others a list.
DICTS: dict[str, Callable] = {
    'builtins.dict': dict,
    'collections.OrderedDict': _ordered_dict,
    'collections.Counter': lambda entries: Counter(dict(entries)),
    'collections.defaultdict': lambda entries, factory=None: defaultdict(factory, entries),
    'mmengine.config.config.ConfigDict': _config_dict,
}
SETS = {'builtins.set': set, 'builtins.frozenset': frozenset}
CONTAINERS = {**DICTS, **SETS, 'builtins.tuple': tuple, 'collections.deque': deque}
#: Classes that are called with arguments of simple types.
_SIMPLE = (
    'builtins.complex builtins.range builtins.slice decimal.Decimal torch.device datetime.datetime '
    'datetime.date datetime.time datetime.timedelta datetime.timezone'
)
# A path of the other system is a path without its files. The module is `_local` in Python 3.13.
_PATHS = {
    f'pathlib{module}.{pure}{system}Path': kind
    for system, kind in (('Posix', pathlib.PurePosixPath), ('Windows', pathlib.PureWindowsPath))
    for module in ('', '._local')
    for pure in ('', 'Pure')
}
_PATHS |= dict.fromkeys(
    (f'pathlib{module}.{type(pathlib.Path()).__name__}' for module in ('', '._local')), pathlib.Path
)
_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_LAYOUTS = {str(v): v for v in vars(torch).values() if isinstance(v, torch.layout)}
_NUMPY = {'multiarray._reconstruct': _array_of_state, 'multiarray.scalar': _scalar}
_NUMPY['numeric._frombuffer'] = _array
#: Every name that a pickle may call, and what is called in its place.
FUNCTIONS: dict[str, Callable] = {
    **PLAIN_TENSORS,
    **CONTAINERS,
    **{name: _of_simple_types(resolve_name(name)) for name in _SIMPLE.split()},
    **{name: _of_simple_types(kind) for name, kind in _PATHS.items()},
    # numpy 1 and 2 name their insides differently.
    **{f'numpy.{core}.{name}': _NUMPY[name] for name in _NUMPY for core in ('core', '_core')},
    'numpy.dtype': _dtype,
    'torch._utils._rebuild_sparse_tensor': _sparse,
    'torch.serialization._get_layout': lambda name: _LAYOUTS[name],
    'torch.Size': torch.Size,
    'builtins.type': _type,
    'builtins.bytes': lambda: b'',
    'builtins.bytearray': _bytearray,
    'builtins.xrange': _of_simple_types(range),
    '_codecs.encode': _encode,
    'uuid.UUID': lambda *, state: uuid.UUID(int=state['int']),
    'argparse.Namespace': _namespace(argparse.Namespace),
    'types.SimpleNamespace': _namespace(types.SimpleNamespace),
    _HISTORY: _history,
}
_VALUES = {
    'builtins': 'int float str bool bytes bytearray complex list tuple dict set frozenset range '
    'slice object Ellipsis NotImplemented',
    'numpy': 'bool_ str_ bytes_ float16 float32 float64 complex64 complex128 int8 int16 int32 '
    'int64 uint8 uint16 uint32 uint64 ndarray dtype',
    'torch': 'Tensor Size device',
    'collections': 'OrderedDict Counter defaultdict deque',
    'mmengine.config.config': 'ConfigDict',
    # mmengine keeps methods among the attributes of its objects.
    _HISTORY.rpartition('.')[0]: 'HistoryBuffer HistoryBuffer.mean HistoryBuffer.max '
    'HistoryBuffer.min HistoryBuffer.current',
    'mmengine.optim.scheduler.param_scheduler': 'OneCycleParamScheduler._annealing_cos '
    'OneCycleParamScheduler._annealing_linear',
}
#: Every name that may stand as a value.
VALUES: dict[str, object] = {
    **{f'{m}.{name}': resolve_name(f'{m}:{name}') for m in _VALUES for name in _VALUES[m].split()},
    **{str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)},
    'numpy.bool': np.bool_,
    'builtins.long': int,
    'builtins.unicode': str,
}
