"""What a pickle may hold, and what is called in place of the functions that it names.

The functions get built arguments, and ``state`` where the pickle sets attributes. Whatever they
raise means that the file is damaged. A further type is one line in ``FUNCTIONS``.
"""

from __future__ import annotations

import argparse
import datetime
import decimal
import math
import pathlib
import pkgutil
import re
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
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


# Python


def _with_simple(kind: Any, *allowed: type) -> Callable:
    """Calls a class of the standard library with arguments of simple types only."""

    def make(*arguments: object) -> object:
        if any(type(argument) not in allowed for argument in arguments):
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
    def make(*, state: dict | None = None) -> object:
        made = kind()
        vars(made).update(state or {})
        return made

    return make


def _type(value: object) -> type:
    if value not in (None, NotImplemented, ...):
        raise RefusedContent(f'it asks for the type of {shorten(value)}')
    return type(value)


def _ordered_dict(entries: list, *, state: object = None) -> OrderedDict:
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
    for key, value in entries:  # its own method would convert the values
        dict.__setitem__(made, key, value)
    return made


def _default_dict(entries: list, factory: type | None = None) -> defaultdict:
    if not (factory is None or isinstance(factory, type)):
        raise TypeError
    return defaultdict(factory, entries)


# numpy


def _dtype(code: str, *flags: object, state: tuple = (3, '|', None, None, None)) -> np.dtype:
    dtype = np.dtype(code) if re.fullmatch('[<>|=]?[a-zA-Z?][0-9]{0,9}', code) else None
    # The state is (version, byte order, three that only structured types fill, …).
    if dtype is None or dtype.kind not in 'biufcUS' or state[2:5] != (None, None, None):
        raise RefusedContent(
            f'it holds an array of type {shorten(code)}; only numbers and text are allowed'
        )
    return dtype.newbyteorder('>') if state[1] == '>' else dtype


def _array(
    data: Any, dtype: np.dtype, shape: tuple, order: Any = 'C', axes: None = None
) -> np.ndarray:
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


# mmengine


def _history(*, state: dict) -> HistoryBuffer:
    logs, counts = state['_log_history'], state['_count_history']
    if not all(isinstance(array, np.ndarray) and array.ndim == 1 for array in (logs, counts)):
        raise DamagedFile('a HistoryBuffer holds something other than lists of numbers')
    return HistoryBuffer(logs, counts, state.get('max_length', 1_000_000))


# torch


def _tensor(
    data: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool = False,
    hooks: object = None,
    metadata: dict | None = None,
) -> Tensor:
    flat = torch.empty(0, dtype=dtype).set_(data)
    # Raises where it reaches beyond the data; set_() would let them grow.
    tensor = flat.as_strided(size, stride, offset)
    # An expanded tensor stands for more numbers than it has, but not for any number of them.
    if min(size, default=0) < 0 or tensor.numel() > 1000 * len(flat) + 2**20:
        raise DamagedFile(f'a tensor of shape {tuple(size)} has {len(flat)} numbers')
    metadata = metadata or {}
    if metadata.get('conj'):
        tensor = tensor.conj()
    if metadata.get('neg'):
        tensor = torch._neg_view(tensor)
    differentiable = dtype.is_floating_point or dtype.is_complex
    return tensor.requires_grad_() if requires_grad is True and differentiable else tensor


def _tensor_v3(data: torch.UntypedStorage, _: torch.dtype, *arguments: Any) -> Tensor:
    offset, size, stride, requires_grad, hooks, dtype, *metadata = arguments
    return _tensor(data, dtype, offset, size, stride, requires_grad, hooks, *metadata)


def _parameter(data: Tensor, requires_grad: bool, *hooks_and_attributes: object) -> Tensor:
    differentiable = data.is_floating_point() or data.is_complex()
    return torch.nn.Parameter(data.detach(), bool(requires_grad) and differentiable)


def _sparse(layout: torch.layout, data: tuple) -> Tensor:
    if layout is torch.sparse_coo:
        indices, values, size, *coalesced = data
        tensor = torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
        return tensor.coalesce() if coalesced == [True] else tensor
    return torch.sparse_compressed_tensor(*data, layout=layout, check_invariants=True)


_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
_NONE = type(None)
_LAYOUTS = {str(v): v for v in vars(torch).values() if isinstance(v, torch.layout)}
_PATHS = {
    # A path of the other system is a path without its files.
    'PosixPath': pathlib.PurePosixPath,
    'WindowsPath': pathlib.PureWindowsPath,
    'PurePosixPath': pathlib.PurePosixPath,
    'PureWindowsPath': pathlib.PureWindowsPath,
    type(pathlib.Path()).__name__: type(pathlib.Path()),
}
_KEYS = (
    *(str, int, float, bytes, _NONE, np.generic, pathlib.PurePath, datetime.date),
    *(datetime.timedelta, torch.dtype, torch.device, uuid.UUID),
)

#: Storage classes, and the type of their numbers.
STORAGES = {
    'torch.DoubleStorage': torch.float64,
    'torch.FloatStorage': torch.float32,
    'torch.HalfStorage': torch.float16,
    'torch.BFloat16Storage': torch.bfloat16,
    'torch.LongStorage': torch.int64,
    'torch.IntStorage': torch.int32,
    'torch.ShortStorage': torch.int16,
    'torch.CharStorage': torch.int8,
    'torch.ByteStorage': torch.uint8,
    'torch.BoolStorage': torch.bool,
    'torch.ComplexDoubleStorage': torch.complex128,
    'torch.ComplexFloatStorage': torch.complex64,
    'torch.storage.UntypedStorage': torch.uint8,
}
#: Functions whose first two arguments are the data of a tensor and their type.
TENSORS: dict[str, Callable] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
}
PARAMETERS = {
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
}
#: Containers; the first argument of a dict is a list of keys and values, of others a list.
DICTS = {
    'builtins.dict': dict,
    'collections.OrderedDict': _ordered_dict,
    'collections.Counter': lambda entries: Counter(dict(entries)),
    'collections.defaultdict': _default_dict,
    'mmengine.config.config.ConfigDict': _config_dict,
}
SETS = {'builtins.set': set, 'builtins.frozenset': frozenset}
CONTAINERS = {**DICTS, **SETS, 'builtins.tuple': tuple, 'collections.deque': deque}
#: Every name that a pickle may call, and what is called in its place.
FUNCTIONS: dict[str, Callable] = {
    **TENSORS,
    **PARAMETERS,
    **CONTAINERS,
    'torch._utils._rebuild_sparse_tensor': _sparse,
    'torch.serialization._get_layout': lambda name: _LAYOUTS[name],
    'torch.device': _with_simple(torch.device, str, int),
    'torch.Size': torch.Size,
    # numpy 1 and 2 name their insides differently.
    'numpy.core.multiarray._reconstruct': _array_of_state,
    'numpy._core.multiarray._reconstruct': _array_of_state,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
    'numpy.core.numeric._frombuffer': _array,
    'numpy._core.numeric._frombuffer': _array,
    'numpy.dtype': _dtype,
    'builtins.type': _type,
    'builtins.bytes': _with_simple(bytes),
    'builtins.bytearray': _bytearray,
    'builtins.complex': _with_simple(complex, int, float),
    'builtins.range': _with_simple(range, int),
    'builtins.xrange': _with_simple(range, int),
    'builtins.slice': _with_simple(slice, int, _NONE),
    '_codecs.encode': _encode,
    'decimal.Decimal': _with_simple(decimal.Decimal, str),
    'uuid.UUID': lambda state: uuid.UUID(int=state['int']),
    'argparse.Namespace': _namespace(argparse.Namespace),
    'types.SimpleNamespace': _namespace(types.SimpleNamespace),
    _HISTORY: _history,
    'datetime.datetime': _with_simple(datetime.datetime, bytes, str, datetime.timezone),
    'datetime.date': _with_simple(datetime.date, bytes, str),
    'datetime.time': _with_simple(datetime.time, bytes, str, datetime.timezone),
    'datetime.timedelta': _with_simple(datetime.timedelta, int),
    'datetime.timezone': _with_simple(datetime.timezone, datetime.timedelta, str),
    **{f'pathlib.{name}': _with_simple(kind, str) for name, kind in _PATHS.items()},
    # The module in Python 3.13.
    **{f'pathlib._local.{name}': _with_simple(kind, str) for name, kind in _PATHS.items()},
}
#: Methods that mmengine keeps among the attributes of its objects.
_METHODS = [f'{_HISTORY}.{name}' for name in ('mean', 'max', 'min', 'current')]
_METHODS += [f'{_ONE_CYCLE}._annealing_{name}' for name in ('cos', 'linear')]
_NAMES = (
    'int float str bool bytes bytearray complex list tuple dict set frozenset range slice object',
    'bool_ str_ bytes_ float16 float32 float64 complex64 complex128 int8 int16 int32 int64 uint8 '
    'uint16 uint32 uint64 ndarray dtype',
)
#: Every name that may stand as a value.
VALUES: dict[str, object] = {
    **{f'builtins.{name}': pkgutil.resolve_name(f'builtins.{name}') for name in _NAMES[0].split()},
    **{f'numpy.{name}': getattr(np, name) for name in _NAMES[1].split()},
    'numpy.bool': np.bool_,
    **{str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)},
    **{name: pkgutil.resolve_name(name) for name in ('torch.Tensor', 'torch.Size', 'torch.device')},
    **{
        f'{kind.__module__}.{kind.__qualname__}': kind
        for kind in (OrderedDict, Counter, defaultdict, deque, ConfigDict, HistoryBuffer)
    },
    **{name: pkgutil.resolve_name(name) for name in _METHODS},
    'builtins.long': int,
    'builtins.unicode': str,
    'builtins.Ellipsis': ...,
    'builtins.NotImplemented': NotImplemented,
}


def is_odd_key(key: object) -> bool:
    """Whether a key of a dict or set can have a hash of the file's choice.

    Raises:
        RefusedContent: It is not text, a number and the like, nor a small tuple of such. A tuple
            nested in itself takes forever to hash.
    """
    if isinstance(key, (str, float, bytes, _NONE)):
        return False
    if isinstance(key, int):
        return abs(key) >= 2**61 - 1  # Python's hash modulus
    left, waiting = 100, [key]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (tuple, frozenset)) and len(part) < left:
            left -= len(part) + 1
            waiting.extend(part)
        elif not isinstance(part, _KEYS):
            raise RefusedContent(f'it uses a {type(key).__name__} as a key')
    return True
