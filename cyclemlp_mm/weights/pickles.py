"""Pickles read as data: a file can name only what a table allows, and call only what is safe.

Built on the unpickler of Python's standard library. ``torch.load(weights_only=True)`` would not
do: it had remote code execution and memory corruption before torch 2.10, takes only protocol 2, and
calls what is on its list with whatever arguments a file gives. The C form of Python's unpickler
cannot be told what may be called and whose attributes may be set.
"""

from __future__ import annotations

import argparse
import datetime
import decimal
import math
import pathlib
import pickle
import pkgutil
import re
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .limits import DamagedFile, RefusedContent, shorten

_DEEPEST = 100
_MIB = 1 << 20
_MOST_UNSHARED = 1_000_000
_MOST_ODD_KEYS = 10_000
_MOST_BITS = 10_000  # Python writes no number of over 4300 digits
_LARGEST_KEY = 2**61 - 2  # Python's hash modulus: beyond, a file can give all of its keys one hash
_MOST_DIMENSIONS = 32  # numpy's own limit before 2.0
_TEXT_ID = re.compile(r"\('storage', <class '([\w.]+)'>, '(\w+)', '[^']*', (\d{1,18})\)")
_NONSENSE = (
    AttributeError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    NotImplementedError,
)


class Named:
    """A function that a pickle may call, or a name that is not allowed (``call`` is None)."""

    def __init__(self, name: str, call: Callable | None = None) -> None:
        self.name, self.call = name, call


class StorageType:
    """A storage class: the type of the numbers of a tensor."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype


class Storage:
    """The bytes of tensors, and the type that they were stored as."""

    name = 'the data of a tensor without the tensor'

    def __init__(self, content: bytearray, dtype: torch.dtype) -> None:
        self.content, self.dtype = content, dtype
        # frombuffer refuses an empty buffer.
        flat = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0)
        self.untyped = flat.untyped_storage()

    def of(self, dtype: torch.dtype, count: int) -> Storage:
        """These bytes as ``count`` numbers of a type.

        Raises:
            DamagedFile: They are not as many.
        """
        if count * dtype.itemsize != len(self.content):
            raise DamagedFile(
                f'a tensor declares {count} numbers of {dtype}, but has {len(self.content)} bytes '
                'of data'
            )
        if dtype != self.dtype:  # torch.save never does that; torch.load takes the first for all
            raise DamagedFile(f'two tensors share data, as {self.dtype} and as {dtype}')
        return self


def _of_marked(method: Callable) -> Callable:
    return lambda reader: method(reader, reader.pop_mark())


class SafeUnpickler(pickle._Unpickler):
    """Reads one pickle after another from a file.

    Args:
        file (BinaryIO): Where to read; stays just behind the last pickle read.
        size (int): Bytes that are there.
        storage (Callable, optional): ``storage(dtype, key, count)`` gives the bytes of a tensor.
            Defaults to None: a file that refers to some is refused.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        storage: Callable[[torch.dtype, str, int], Storage] | None = None,
    ) -> None:
        # What Python 2 wrote is bytes or text; with these, either can be had back from the text.
        super().__init__(file, encoding='utf-8', errors='surrogateescape')
        self._storage, self._size = storage, size
        self._work, self._odd_keys = 4 * size + _MIB, 0

    def load(self) -> object:
        """The object of the next pickle.

        Raises:
            DamagedFile: Not a pickle, or one that is cut off or makes no sense.
            RefusedContent: It names or calls something that is not allowed, or its containers are
                nested so that whoever walks through them would not come to an end.
        """
        try:
            content = super().load()
            _unfold(content, _MOST_UNSHARED + self._size, {})
        except (DamagedFile, RefusedContent):
            raise
        except EOFError:
            raise DamagedFile('it ends early') from None
        except _NONSENSE as error:  # not its text, which may spell out an endless container
            raise DamagedFile(f'its pickle makes no sense: {type(error).__name__}') from None
        return content

    def find_class(self, module: str, name: str) -> object:
        """What stands for a name; one that is not allowed is refused when it is used."""
        # Python 2's name for the module, which protocol 2 still writes.
        full = f'{"builtins" if module == "__builtin__" else module}.{name}'
        if full in _METHODS:
            return _method(full)
        return _NAMES[full] if full in _NAMES else Named(full)

    def persistent_load(self, pid: object) -> Storage:
        """The bytes of ('storage', type, key, location, count[, view])."""
        if isinstance(pid, str) and (text := _TEXT_ID.fullmatch(pid)):  # of protocol 0
            pid = ('storage', _NAMES.get(text[1]), text[2], '', int(text[3]))
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != 'storage':
            raise RefusedContent('it refers to something outside of its pickle, not tensor data')
        kind, key, count = pid[1], pid[2], pid[4]
        if type(kind) is not StorageType or type(key) is not str or self._storage is None:
            raise DamagedFile('the data of a tensor has no type or no name')
        if pid[5:] not in ((), (None,)):
            raise RefusedContent('it was written by torch 0.3 or older: save it again')
        return self._storage(kind.dtype, key, *check_sizes((count,), 'size'))

    def _spend(self, values: object) -> None:
        """Ends a pickle that refers to the same data again and again to make much of little."""
        parts = dict.values(values) if isinstance(values, dict) else values
        parts = [values, *(parts if isinstance(values, (dict, tuple)) else ())]
        self._work -= sum(len(part) for part in parts if isinstance(part, _SIZED))
        if self._work < 0:
            raise DamagedFile(f'it declares more data than {self._size} bytes can hold')

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        call = function.call if type(function) is Named else _CALLS.get(id(function))
        if call is None:
            raise refuse(function)
        if type(arguments) is not tuple:
            raise DamagedFile('its pickle calls something without arguments')
        self._spend(arguments)
        if call is _sparse:  # looks at every number
            self._work -= 1000
        if call in _MADE_OF_KEYS and arguments:
            self._check_keys(_keys_of(*arguments, pairs=function not in (set, frozenset)))
        self.append(call(*arguments))

    def _set_state(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        # By base class: every numpy type has a dtype class of its own.
        setter = next((_STATES[kind] for kind in type(made).__mro__ if kind in _STATES), None)
        if setter is None:
            raise (
                refuse(made)
                if type(made) is Named
                else RefusedContent(
                    f'it sets attributes of a {type(made).__name__}, which a checkpoint may not do'
                )
            )
        self._spend(state)
        setter(made, state)

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if len(items) % 2 or not isinstance(target, dict):
            raise DamagedFile(f'its pickle sets items of a {type(target).__name__}')
        self._check_keys(items[::2])
        put_items(target, zip(items[::2], items[1::2], strict=True))

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) not in (list, deque):
            raise DamagedFile(f'its pickle appends to a {type(self.stack[-1]).__name__}')
        self.stack[-1].extend(items)

    def _add_items(self, items: list) -> None:
        if type(self.stack[-1]) is not set:
            raise DamagedFile(f'its pickle adds to a {type(self.stack[-1]).__name__}')
        self._check_keys(items)
        self.stack[-1].update(items)

    def _frozenset(self, items: list) -> None:
        self._check_keys(items)
        self.append(frozenset(items))

    def _dict(self, items: list) -> None:
        self.append({})
        self._set_items(items)

    def _check_keys(self, keys: list) -> None:
        self._odd_keys += sum(map(check_key, keys))
        if self._odd_keys > _MOST_ODD_KEYS:  # a file can give them all one hash
            raise RefusedContent(f'over {_MOST_ODD_KEYS} of its keys are tuples or huge numbers')

    def _refuse_operation(self) -> None:
        raise RefusedContent('its pickle uses an operation that no checkpoint needs')

    dispatch |= {
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,  # the same, of a class
        pickle.BUILD[0]: _set_state,
        pickle.SETITEM[0]: lambda self: self._set_items([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: _of_marked(_set_items),
        pickle.DICT[0]: _of_marked(_dict),
        pickle.APPEND[0]: lambda self: self._extend([self.stack.pop()]),
        pickle.APPENDS[0]: _of_marked(_extend),
        pickle.ADDITEMS[0]: _of_marked(_add_items),
        pickle.FROZENSET[0]: _of_marked(_frozenset),
        **dict.fromkeys(
            (
                pickle.INST[0],
                pickle.OBJ[0],
                pickle.NEWOBJ_EX[0],
                pickle.EXT1[0],
                pickle.EXT2[0],
                pickle.EXT4[0],
                pickle.NEXT_BUFFER[0],
                pickle.READONLY_BUFFER[0],
            ),
            _refuse_operation,
        ),
    }


def refuse(value: object) -> RefusedContent:
    """The error of a file that holds or calls what is not allowed."""
    name = (
        value.name
        if isinstance(value, (Named, StorageType, Storage))
        else (
            f'{value.__module__}.{value.__qualname__}'
            if isinstance(value, type)
            else shorten(value)
        )
    )
    return RefusedContent(
        f'it holds {shorten(name)}, which is not among the types that a checkpoint may hold '
        '(tensors, numbers, strings, containers, numpy arrays, mmengine logs, arguments of a '
        'training). Nothing of it was run'
    )


def check_key(key: object) -> int:
    """Whether a key of a dict or set may have a hash of the file's choice (1) or not (0).

    Raises:
        RefusedContent: Not text, a number and the like, nor a small tuple of such. A tuple nested
            in itself takes for ever to hash.
    """
    if isinstance(key, (str, float, bytes, type(None))):
        return 0
    if isinstance(key, int):
        return int(abs(key) > _LARGEST_KEY)
    left, waiting = 100, [key]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (tuple, frozenset)) and len(part) < left:
            left -= len(part) + 1
            waiting.extend(part)
        elif not isinstance(part, _KEYS):
            raise RefusedContent(f'it uses a {type(key).__name__} as a key')
    return 1


def put_items(target: dict, items: Iterator[tuple[object, object]]) -> None:
    """Set items as they are: a ConfigDict's own method would convert them."""
    put = OrderedDict.__setitem__ if isinstance(target, OrderedDict) else dict.__setitem__
    for key, value in items:
        put(target, key, value)


def check_sizes(sizes: object, what: str) -> tuple[int, ...]:
    """``sizes`` if it is a tuple of a few numbers that are not negative."""
    if not isinstance(sizes, tuple) or len(sizes) > _MOST_DIMENSIONS:
        raise DamagedFile(f'the {what} of an array is not a tuple of a few numbers')
    for size in sizes:
        if type(size) is not int or not 0 <= size < 2**62:
            raise DamagedFile(f'the {what} of an array contains {shorten(size)}')
    return sizes


def _unfold(
    value: object, most: int, seen: dict[int, tuple[int, int] | None], above: int = 0
) -> tuple[int, int]:
    """Depth of a value, and the number of objects that whoever walks through it will meet.

    Users of a checkpoint walk through it with recursive functions. So a container must not hold
    itself, nest over 100 deep, or, by sharing, stand for far more objects than the pickle has.
    """
    if isinstance(value, (Named, StorageType, Storage)):
        raise refuse(value)
    if not isinstance(value, _CONTAINERS):
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise RefusedContent('it holds a whole number of thousands of digits')
        return 0, 1
    if id(value) not in seen:
        seen[id(value)] = None
        depth, count = 1, 1
        for child in _children(value) if above < _DEEPEST else ():
            inner, number = _unfold(child, most, seen, above + 1)
            depth, count = max(depth, inner + 1), count + number
        if above + depth > _DEEPEST:
            raise RefusedContent(f'it nests containers over {_DEEPEST} deep')
        if count > most:
            raise RefusedContent(
                'it refers to the same containers over and over: unfolded, they are over '
                f'{most} objects'
            )
        seen[id(value)] = depth, count
    if seen[id(value)] is None:
        raise RefusedContent('it holds a container that holds itself')
    return seen[id(value)]


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from dict.values(value)
    elif isinstance(value, (list, tuple, deque)):
        yield from value
    yield from getattr(value, '__dict__', {}).values()  # of a Namespace, or metadata of modules


# numpy


def _dtype(code: object, *flags: object) -> np.dtype:
    if type(code) is not str or not re.fullmatch('[<>|=]?[a-zA-Z?][0-9]{0,9}', code):
        raise DamagedFile(f'it holds an array of the unknown type {shorten(code)}')
    dtype = np.dtype(code)
    if dtype.kind not in 'biufcUS':
        raise RefusedContent(f'it holds an array of type {code}; only numbers and text are allowed')
    return np.dtype(dtype, copy=True)  # a pickle sets its byte order afterwards


def _set_dtype(dtype: np.dtype, state: object) -> None:
    # (version, byte order, three that only structured types fill, two sizes, flags). The flags
    # could make numpy take bytes for addresses of objects.
    if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise RefusedContent('it holds an array of a structured type; only numbers are allowed')
    if state[1] == '>':
        sizes = (
            (dtype.itemsize, dtype.alignment, dtype.flags) if dtype.kind in 'US' else (-1, -1, 0)
        )
        dtype.__setstate__((3, '>', None, None, None, *sizes))


def _empty_array(*arguments: object) -> np.ndarray:
    return np.empty(0, np.int8)  # filled by _set_array; the arguments are always the same


def _set_array(array: np.ndarray, state: object) -> None:
    _, shape, dtype, fortran, data = state
    array.__setstate__((1, shape, dtype, bool(fortran), _check_data(shape, dtype, data)))


def _array_from_buffer(
    data: object, dtype: object, shape: object, order: object = 'C', axes: object = None
) -> np.ndarray:
    if axes is not None:
        raise RefusedContent('it holds an array whose axes are in another order')
    data = bytearray(_check_data(shape, dtype, data))
    return np.ndarray(shape, dtype, data, order='F' if order == 'F' else 'C')


def _scalar(dtype: object, data: object) -> np.generic:
    data = _check_data((), dtype, data)
    return np.ndarray((), dtype, data)[()] if data else dtype.type()


def _check_data(shape: object, dtype: object, data: object) -> bytes:
    """The bytes of an array, if they are as many as it declares."""
    if isinstance(data, str):  # Python 2's bytes
        data = data.encode('utf-8', 'surrogateescape')
    if not isinstance(dtype, np.dtype) or not isinstance(data, (bytes, bytearray)):
        raise DamagedFile('an array has no type or no data')
    if math.prod(check_sizes(shape, 'shape')) * dtype.itemsize != len(data):
        raise DamagedFile(
            f'an array declares shape {shape} of {dtype}, but has {len(data)} bytes of data'
        )
    return bytes(data)


# Python


def _plain(kind: type, *allowed: type, most: int = 1000) -> Callable:
    """Calls a class of the standard library with what it is always called with in a pickle."""

    def make(*arguments: object) -> object:
        for argument in arguments:
            if type(argument) not in allowed or (
                isinstance(argument, (str, bytes)) and len(argument) > most
            ):
                raise DamagedFile(f'it makes a {kind.__name__} of {shorten(argument)}')
        return kind(*arguments)

    return make


def _encode(text: object, codec: object = 'latin1') -> bytes:
    """How protocol 2 spells bytes."""
    if type(text) is not str or codec not in ('latin1', 'latin-1'):
        raise RefusedContent(f'it encodes text as {shorten(codec)}')
    return text.encode('latin1')


def _bytearray(data: object = b'', *codec: object) -> bytearray:
    data = _encode(data, *codec) if codec else data
    if not isinstance(data, bytes):
        raise DamagedFile('a bytearray is not made of bytes')
    return bytearray(data)


def _list_of(items: object) -> list:
    if not isinstance(items, (list, tuple)):
        raise DamagedFile(f'a container is made of {shorten(items)}')
    return list(items)


def _keys_of(items: object, pairs: bool) -> list:
    if type(items) is dict:
        return list(items)
    return [key for key, _ in _list_of(items)] if pairs else _list_of(items)


def _dict_of(made: dict, items: object) -> dict:
    # A list of pairs is how Python 2 saved an OrderedDict.
    put_items(made, items.items() if type(items) is dict else _list_of(items))
    return made


def _default_dict(factory: object = None) -> defaultdict:
    if not (factory is None or isinstance(factory, type)):
        raise refuse(factory)
    return defaultdict(factory)


def _deque(items: object = (), size: object = None) -> deque:
    if type(size) not in (int, type(None)):
        raise DamagedFile(f'a deque has the size {shorten(size)}')
    return deque(_list_of(items), size)


def _object_of(kind: object, base: object, state: object) -> object:
    """How protocols 0 and 1 make an object whose attributes follow."""
    if kind not in (*_WITH_ATTRIBUTES, HistoryBuffer, uuid.UUID) or base is not object:
        raise refuse(Named('copyreg._reconstructor'))
    return _CLASSES[kind]()


def _type_of(value: object) -> type:
    if not any(value is single for single in (None, NotImplemented, ...)):
        raise refuse(Named('builtins.type'))
    return type(value)


def _set_ordered_dict(made: OrderedDict, state: object) -> None:
    """The versions of modules, which a state dict carries as an attribute; any other is dropped."""
    metadata = state.get('_metadata') if type(state) is dict else None
    if isinstance(metadata, dict) and all(
        type(entry) is dict and type(entry.get('version', 1)) in (int, type(None))
        for entry in metadata.values()
    ):
        made._metadata = metadata


def _set_attributes(made: object, state: object) -> None:
    if type(state) is not dict or not all(type(name) is str for name in state):
        raise DamagedFile(f'the attributes of a {type(made).__name__} make no sense')
    vars(made).update(state)


def _set_uuid(made: uuid.UUID, state: object) -> None:
    object.__setattr__(made, 'int', uuid.UUID(int=state['int']).int)


# mmengine


def _set_history(history: HistoryBuffer, state: object) -> None:
    logs, counts = (state.get(name) for name in ('_log_history', '_count_history'))
    if not all(isinstance(v, np.ndarray) and v.ndim == 1 for v in (logs, counts)):
        raise DamagedFile('a HistoryBuffer holds something other than a list of numbers')
    length = state.get('max_length', 1000000)
    if len(logs) != len(counts) or type(length) is not int or length < 1:
        raise DamagedFile('the lists of a HistoryBuffer do not fit')
    history._log_history, history._count_history, history.max_length = logs, counts, length


def _attribute(owner: object, name: object) -> Callable:
    """Protocol 2 names a method by ``getattr``."""
    owner = owner.name if type(owner) is Named else _HISTORY if owner is HistoryBuffer else ''
    full = f'{owner}.{shorten(name)}'
    if full not in _METHODS:
        raise refuse(Named(f'builtins.getattr, for {shorten(name)}'))
    return _method(full)


def _method(full: str) -> Callable:
    owner, _, name = full.rpartition('.')
    module, _, kind = owner.rpartition('.')
    return getattr(pkgutil.resolve_name(f'{module}:{kind}'), name)


# torch


def _tensor(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A tensor on a storage, refused where it reaches beyond it.

    ``set_`` would let the storage of a tensor grow, with whatever the memory held before.
    """
    if type(storage) is not Storage:
        raise DamagedFile('a tensor has no data')
    dtype = dtype or storage.dtype
    size, stride = check_sizes(size, 'size'), check_sizes(stride, 'stride')
    (offset,) = check_sizes((offset,), 'offset')
    count, available = math.prod(size), len(storage.content) // dtype.itemsize
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride)) if count else 0
    # An expanded tensor stands for more numbers than it has, but not for any number of them.
    if len(size) != len(stride) or reach > available or count > 1000 * available + _MIB:
        raise DamagedFile(
            f'a tensor declares shape {size} of {dtype} with strides {stride} from {offset}, but '
            f'its data are {available} numbers'
        )
    if count:
        tensor = torch.empty(0, dtype=dtype)
        tensor.set_(storage.untyped, offset, size, stride)
    else:
        tensor = torch.empty(size, dtype=dtype)
    if isinstance(metadata, dict) and metadata.get('conj'):
        tensor = tensor.conj()
    if isinstance(metadata, dict) and metadata.get('neg'):
        tensor = torch._neg_view(tensor)  # lazily: the numbers of a legacy file come later
    differentiable = dtype.is_floating_point or dtype.is_complex
    return tensor.requires_grad_() if requires_grad is True and differentiable else tensor


def _tensor_v3(*arguments: object) -> Tensor:
    *first, hooks, dtype, metadata = (*arguments, None)[:8]
    if type(dtype) is Named and dtype.call is None:
        raise RefusedContent(
            f'it holds a tensor of {shorten(dtype.name)}, a type that PyTorch {torch.__version__} '
            'does not have: read it with the version that wrote it, and convert the tensor'
        )
    if not isinstance(dtype, torch.dtype):
        raise DamagedFile('a tensor has no type')
    return _tensor(*first, hooks, metadata, dtype)


def _parameter(data: object, requires_grad: object, *hooks_and_attributes: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise DamagedFile('a parameter has no data')
    differentiable = data.is_floating_point() or data.is_complex()
    return torch.nn.Parameter(data.detach(), bool(requires_grad) and differentiable)


def _tensor_of_type(function: object, kind: object, arguments: object, state: object) -> Tensor:
    """A tensor with attributes, as FSDP sets them, or of another class: the plain tensor of it."""
    is_type = isinstance(kind, type) or (type(kind) is Named and kind.call is None)
    if type(function) is not Named or function.call not in (_tensor, _tensor_v3, _parameter):
        raise refuse(function)
    if not is_type or type(arguments) is not tuple:
        raise DamagedFile('a tensor of another class has no class or no data')
    return function.call(*arguments)


def _sparse(layout: object, data: object) -> Tensor:
    if layout is torch.sparse_coo:  # indices, values, size, whether it is coalesced
        parts, size, coalesced = data[:2], data[2], data[3:] == (True,)
        make, how = torch.sparse_coo_tensor, {}
    else:
        parts, size, coalesced = data[:3], data[3], False
        make, how = torch.sparse_compressed_tensor, dict(layout=layout)
    if not all(isinstance(part, Tensor) for part in parts):
        raise DamagedFile('a sparse tensor has no data')
    tensor = make(*parts, check_sizes(size, 'size'), check_invariants=True, **how)
    return tensor.coalesce() if coalesced else tensor


def _layout(name: object) -> torch.layout:
    return _LAYOUTS[name if type(name) is str else '']


_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
#: Methods that mmengine keeps among the attributes of its objects.
_METHODS = {f'{_HISTORY}.{name}' for name in ('mean', 'max', 'min', 'current')}
_METHODS |= {f'{_ONE_CYCLE}._annealing_{name}' for name in ('cos', 'linear')}
_NONE = type(None)
_TIMES = (bytes, int, str, _NONE, datetime.timedelta, datetime.timezone)
_PATHS = (pathlib.PurePosixPath, pathlib.PureWindowsPath)
_NUMBERS = {
    np.bool_,
    np.str_,
    np.bytes_,
    np.float16,
    np.float32,
    np.float64,
    np.complex64,
    np.complex128,
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
}
_WITH_ATTRIBUTES = (argparse.Namespace, types.SimpleNamespace)
_SIZED = (str, bytes, bytearray, list, tuple, dict)
_CONTAINERS = (dict, list, tuple, deque, *_WITH_ATTRIBUTES)
_KEYS = (
    str,
    int,
    float,
    bytes,
    _NONE,
    np.generic,
    pathlib.PurePath,
    datetime.date,
    datetime.timedelta,
    torch.dtype,
    torch.device,
    uuid.UUID,
)

#: Classes, and what stands for calling them; None: a file may name them, not call them.
_CLASSES = {
    OrderedDict: lambda items=(): _dict_of(OrderedDict(), items),
    Counter: lambda items=(): _dict_of(Counter(), items),
    ConfigDict: lambda items=(): _dict_of(ConfigDict(), items),
    defaultdict: _default_dict,
    deque: _deque,
    HistoryBuffer: lambda: HistoryBuffer(),
    set: lambda items=(): set(_list_of(items)),
    frozenset: lambda items=(): frozenset(_list_of(items)),
    tuple: lambda items=(): tuple(_list_of(items)),  # Paddle: a name and an array
    bytearray: _bytearray,
    bytes: _plain(bytes),
    complex: _plain(complex, int, float),
    range: _plain(range, int),
    slice: _plain(slice, int, _NONE),
    decimal.Decimal: _plain(decimal.Decimal, str),
    uuid.UUID: lambda: uuid.UUID(int=0),
    **{
        kind: _plain(kind, *_TIMES)
        for kind in (
            datetime.datetime,
            datetime.date,
            datetime.time,
            datetime.timedelta,
            datetime.timezone,
        )
    },
    **{kind: _plain(kind) for kind in _WITH_ATTRIBUTES},
    **{kind: _plain(kind, str) for kind in (*_PATHS, type(pathlib.Path()))},
    np.dtype: _dtype,
    np.ndarray: None,
    torch.device: _plain(torch.device, str, int),
    torch.Size: lambda sizes=(): torch.Size(check_sizes(sizes, 'size')),
    torch.Tensor: None,
    torch.nn.Parameter: None,
    **dict.fromkeys((int, float, str, bool, list, dict, object, *_NUMBERS)),
}
_STATES = {
    OrderedDict: _set_ordered_dict,
    HistoryBuffer: _set_history,
    uuid.UUID: _set_uuid,
    np.dtype: _set_dtype,
    np.ndarray: _set_array,
    **dict.fromkeys(_WITH_ATTRIBUTES, _set_attributes),
}
_FUNCTIONS = {
    'builtins.getattr': _attribute,
    'builtins.type': _type_of,
    '_codecs.encode': _encode,
    'copyreg._reconstructor': _object_of,
    'copy_reg._reconstructor': _object_of,
    # numpy 1 and 2 name their insides differently.
    **{
        f'{core}.{name}': call
        for core in ('numpy.core', 'numpy._core')
        for name, call in {
            'multiarray._reconstruct': _empty_array,
            'multiarray.scalar': _scalar,
            'numeric._frombuffer': _array_from_buffer,
        }.items()
    },
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _tensor_of_type,
    'torch._utils._rebuild_sparse_tensor': _sparse,
    'torch.serialization._get_layout': _layout,
}
_LAYOUTS = {str(v): v for v in vars(torch).values() if isinstance(v, torch.layout)}
_DTYPES = {str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
_STORAGES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexDoubleStorage': torch.complex128,
    'ComplexFloatStorage': torch.complex64,
}

_CALLS = {id(kind): call for kind, call in _CLASSES.items()}
_MADE_OF_KEYS = [_CLASSES[kind] for kind in (OrderedDict, Counter, ConfigDict, set, frozenset)]
#: Dotted names to what they stand for.
_NAMES: dict[str, object] = {
    **{f'{kind.__module__}.{kind.__qualname__}': kind for kind in _CLASSES},
    # A path of the other system is a path without its files; Python 3.13 has another module.
    **{
        f'{module}.{name}': kind
        for module in ('pathlib', 'pathlib._local')
        for name, kind in {
            'PosixPath': _PATHS[0],
            'WindowsPath': _PATHS[1],
            'PurePosixPath': _PATHS[0],
            'PureWindowsPath': _PATHS[1],
            type(pathlib.Path()).__name__: type(pathlib.Path()),
        }.items()
    },
    'builtins.xrange': range,
    'builtins.long': int,
    'builtins.unicode': str,
    'builtins.Ellipsis': ...,
    'builtins.NotImplemented': NotImplemented,
    **{name: Named(name, call) for name, call in _FUNCTIONS.items()},
    **_DTYPES,
    **{
        f'torch.{more}{name}': StorageType(f'torch.{name}', dtype)
        for name, dtype in _STORAGES.items()
        for more in ('', 'cuda.')
    },
    'torch.storage.UntypedStorage': StorageType('torch.storage.UntypedStorage', torch.uint8),
}
