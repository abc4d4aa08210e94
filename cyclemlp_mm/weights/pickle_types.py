"""What a pickle in a checkpoint may name: containers, numpy arrays and numbers, mmengine's logs.

Each entry checks its arguments itself, and takes from the budget what it is about to allocate.
"""

import math
from collections import Counter, OrderedDict

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from .limits import Budget, DamagedFile, RefusedContent, shorten
from .pickle_reader import Known, check_key

_STATISTICS = ('mean', 'max', 'min', 'current')
_MOST_DIMENSIONS = 32  # numpy's own limit before 2.0


def check_sizes(sizes: object, what: str) -> 'tuple[int, ...]':
    """``sizes`` if it is a tuple of a few non-negative ints."""
    if not isinstance(sizes, tuple) or len(sizes) > _MOST_DIMENSIONS:
        raise DamagedFile(f'the {what} of an array is no tuple of a few numbers')
    if any(type(size) is not int or not 0 <= size < 2**62 for size in sizes):
        raise DamagedFile(f'the {what} of an array is {shorten(sizes)}')
    return sizes


# numpy


def _dtype(budget: Budget, code: object, *flags: object) -> np.dtype:
    if isinstance(code, str) and len(code) < 8:
        try:
            dtype = np.dtype(code)
        except TypeError as error:
            raise DamagedFile(f'it holds an array of the unknown type {code!r}') from error
        if dtype.kind in 'biufc':
            return np.dtype(code, copy=True)  # a pickle sets its byte order afterwards
    raise RefusedContent(f'it holds an array of type {shorten(code)}; only numbers are allowed')


def _set_dtype(dtype: np.dtype, state: object) -> None:
    # (version, byte order, three that only structured types fill, two sizes, flags)
    if not (isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)):
        raise RefusedContent('it holds an array of a structured type; only numbers are allowed')
    if state[1] not in ('<', '|', '='):
        raise RefusedContent(f'it holds an array of byte order {shorten(state[1])}')


def _empty_array(budget: Budget, *arguments: object) -> np.ndarray:
    return np.empty(0, np.int8)  # filled by _set_array; the arguments are always the same


def _set_array(array: np.ndarray, state: object) -> None:
    if not (isinstance(state, tuple) and len(state) == 5):
        raise DamagedFile('the state of an array makes no sense')
    _, shape, dtype, fortran, data = state
    if isinstance(data, str):
        data = data.encode('ascii')  # Python 2's bytes that happened to be text
    _check_data(shape, dtype, data)
    array.__setstate__((1, shape, dtype, bool(fortran), data))


def _array_from_buffer(
    budget: Budget, data: object, dtype: object, shape: object, order: object = 'C'
) -> np.ndarray:
    _check_data(shape, dtype, data)
    return np.frombuffer(data, dtype).reshape(shape, order='F' if order == 'F' else 'C')


def _check_data(shape: object, dtype: object, data: object) -> None:
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
        raise DamagedFile('an array has no type or no data')
    if math.prod(check_sizes(shape, 'shape')) * dtype.itemsize != len(data):
        raise DamagedFile(
            f'an array declares shape {shape} of {dtype}, but has {len(data)} bytes of data'
        )


def _scalar(budget: Budget, dtype: object, data: object) -> np.generic:
    if isinstance(data, str):
        data = data.encode('ascii')
    _check_data((), dtype, data)
    return np.frombuffer(data, dtype)[0]


# Python


def _encode(budget: Budget, text: object, codec: object = 'latin1') -> bytes:
    """How protocol 2 spells bytes."""
    if not isinstance(text, str) or codec not in ('latin1', 'latin-1'):
        raise RefusedContent(f'it encodes text as {shorten(codec)}')
    budget.spend(len(text))
    return text.encode('latin1')


def _bytearray(budget: Budget, data: object = b'', *codec: object) -> bytearray:
    data = _encode(budget, data, *codec) if codec else data
    if not isinstance(data, bytes):
        raise DamagedFile('a bytearray is made of something that is no bytes')
    budget.spend(len(data))
    return bytearray(data)


def _members(budget: Budget, members: object = ()) -> list:
    if not isinstance(members, (list, tuple)):
        raise DamagedFile('a set is made of something that is no list')
    budget.spend(100 * len(members))
    return [check_key(member) for member in members]


def _tuple(budget: Budget, items: object = ()) -> tuple:
    if not isinstance(items, (list, tuple)):
        raise DamagedFile('a tuple is made of something that is no list')
    budget.spend(64 + 8 * len(items))
    return tuple(items)


def _complex(budget: Budget, real: float, imaginary: float) -> complex:
    if not all(type(part) in (int, float) for part in (real, imaginary)):
        raise DamagedFile('a complex number is made of something that is no number')
    return complex(real, imaginary)


def _slice(budget: Budget, *parts: object) -> slice:
    if len(parts) != 3 or any(part is not None and type(part) is not int for part in parts):
        raise DamagedFile('a slice is made of something that is no number')
    return slice(*parts)


def _dict_of(budget: Budget, items: object, made: dict) -> dict:
    """``made`` with ``items``, as they are: ConfigDict's own constructor would convert them."""
    if isinstance(items, (list, tuple)):  # Python 2's OrderedDict: a list of pairs
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in items):
            raise DamagedFile('a dict is made of something that is no list of pairs')
    elif type(items) is dict:
        items = list(items.items())
    else:
        raise DamagedFile('a dict is made of something that is no dict')
    budget.spend(100 * len(items))
    set_item = OrderedDict.__setitem__ if isinstance(made, OrderedDict) else dict.__setitem__
    for key, value in items:
        set_item(made, check_key(key), value)
    return made


def _set_ordered_dict(made: OrderedDict, state: object) -> None:
    """The versions of modules, which a state dict carries as an attribute; any other is dropped."""
    metadata = state.get('_metadata') if isinstance(state, dict) else None
    if isinstance(metadata, dict) and all(
        type(entry) is dict and type(entry.get('version', 1)) in (int, type(None))
        for entry in metadata.values()
    ):
        made._metadata = metadata


# mmengine


def _set_history(history: HistoryBuffer, state: object) -> None:
    logs, counts = (state.get(name) for name in ('_log_history', '_count_history'))
    if not all(isinstance(v, np.ndarray) and v.ndim == 1 for v in (logs, counts)):
        raise DamagedFile('a HistoryBuffer holds something that is no list of numbers')
    length = state.get('max_length', 1000000)
    if len(logs) != len(counts) or type(length) is not int or length < 1:
        raise DamagedFile('the lists of a HistoryBuffer do not fit')
    history._log_history, history._count_history, history.max_length = logs, counts, length


def _attribute(budget: Budget, owner: object, name: object) -> object:
    """A HistoryBuffer refers to its statistics methods through ``getattr``; nothing else may."""
    if not (isinstance(owner, Known) and owner.makes is HistoryBuffer) or name not in _STATISTICS:
        raise RefusedContent(
            f'it holds builtins.getattr, for {shorten(name)}, which is not among what a checkpoint '
            'may look up. Nothing of it was run'
        )
    return getattr(HistoryBuffer, name)


def _device(budget: Budget, kind: object, index: object = None) -> torch.device:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise DamagedFile('a device has a name that is none')
    return torch.device(kind) if index is None else torch.device(kind, index)


_ARRAY_MODULES = ('numpy.core', 'numpy._core')  # numpy 1 and 2 name their insides differently

_KNOWN = [
    Known('collections.OrderedDict', lambda b, items=(): _dict_of(b, items, OrderedDict()),
          _set_ordered_dict, OrderedDict),
    Known('collections.Counter', lambda b, items=(): _dict_of(b, items, Counter())),
    Known('mmengine.config.config.ConfigDict',
          lambda b, items=(): _dict_of(b, items, ConfigDict())),
    Known('mmengine.logging.history_buffer.HistoryBuffer', lambda b: HistoryBuffer(),
          _set_history, HistoryBuffer),
    Known('builtins.getattr', _attribute),
    Known('builtins.set', lambda b, members=(): set(_members(b, members))),
    Known('builtins.frozenset', lambda b, members=(): frozenset(_members(b, members))),
    # Paddle keeps a tensor inside a container as the tuple of its name and its array.
    Known('builtins.tuple', _tuple),
    Known('builtins.bytearray', _bytearray),
    Known('builtins.complex', _complex),
    Known('builtins.slice', _slice),
    Known('_codecs.encode', _encode),
    Known('numpy.dtype', _dtype, _set_dtype, np.dtype),
    Known('numpy.ndarray', None, _set_array, np.ndarray),
    *(Known(f'{core}.multiarray._reconstruct', _empty_array) for core in _ARRAY_MODULES),
    *(Known(f'{core}.multiarray.scalar', _scalar) for core in _ARRAY_MODULES),
    *(Known(f'{core}.numeric._frombuffer', _array_from_buffer) for core in _ARRAY_MODULES),
    Known('torch.device', _device),
    Known('torch.Size', lambda b, sizes=(): torch.Size(check_sizes(sizes, 'size'))),
]  # fmt: skip

#: Dotted names to what they stand for, without tensors.
PLAIN_TYPES = {known.name: known for known in _KNOWN}

#: Types of what a finished checkpoint is made of, besides containers.
LEAVES = (
    str, bytes, bytearray, int, float, bool, complex, slice, type(None), np.ndarray, np.generic,
    np.dtype, torch.Tensor, torch.dtype, torch.device, torch.Size,
    HistoryBuffer,
)  # fmt: skip
