"""Pickles read as data, in two steps that run nothing of the file.

Python's own unpickler makes a :class:`Call` of everything that a pickle names or calls, which only
stores what the file holds. Then :meth:`PickleReader.build` makes the real objects, of the types
of :mod:`.allowed_types`, or raises.

``torch.load(weights_only=True)`` is not used: it had remote code execution and memory corruption
before torch 2.10, and reads only protocol 2.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from . import allowed_types
from .allowed_types import DamagedFile, RefusedContent, shorten

#: What a damaged pickle raises, in the unpickler or where its objects are made.
DAMAGE = (
    *(pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError, EOFError),
    *(RuntimeError, ArithmeticError),
)

_DEEPEST = 100
_MOST_OBJECTS = 1_000_000  # and one for each byte of the file
_MOST_ODD_KEYS = 10_000
_MOST_BITS = 10_000  # Python writes no number of over 4300 digits
_STORAGE_TEXT = re.compile(r"\('storage', <class '([\w.]+)'>, '(\w+)', '[^']*', (\d{1,18})\)")
_OLD_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # Python 2's, and protocol 2's
#: The size of each operation's argument; below 0 are pickletools' names for those that contain it.
_SIZES = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes}
_COUNT_SIZES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_TWO_LINES = pickle.GLOBAL + pickle.INST
_EXTENSIONS = pickle.EXT1 + pickle.EXT2 + pickle.EXT4


def _reference(values: bytes, kind: bytes) -> bytes:
    """Operations that call ``persistent_load((values, kind))``."""
    name = pickle.SHORT_BINUNICODE + bytes([len(kind)]) + kind
    return values + name + pickle.TUPLE2 + pickle.BINPERSID


#: Operations that hash what the file puts into a dict or set, and what takes their place.
_REPLACED = {
    pickle.EMPTY_DICT[0]: _reference(pickle.EMPTY_TUPLE, b'dict'),
    pickle.DICT[0]: _reference(pickle.TUPLE, b'dict'),
    pickle.EMPTY_SET[0]: _reference(pickle.EMPTY_TUPLE, b'set'),
    pickle.FROZENSET[0]: _reference(pickle.TUPLE, b'frozenset'),
    pickle.FRAME[0]: b'',  # frames have other lengths then
}
_CHECKED = {*_REPLACED, *_EXTENSIONS, *(pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT)}
_PLAIN = {float, bool, type(None)}
_TEXTS = {str, bytes, bytearray}


class Call:
    """What a pickle calls, with which arguments, and what it puts into the result.

    There is a subclass for each name in the file; the subclass itself stands for the name.
    """

    __slots__ = ('arguments', 'items', 'state')
    name: ClassVar[str]
    arguments: tuple[Any, ...]
    items: list[Any]
    state: object

    def __new__(cls, *arguments: object) -> Call:
        call = super().__new__(cls)
        call.arguments, call.items, call.state = arguments, [], None
        return call

    def __setstate__(self, state: object) -> None:
        if self.state is not None:
            raise DamagedFile(f'it sets the attributes of a {shorten(self.name)} twice')
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items.append((key, value))

    def append(self, item: object) -> None:
        self.items.append(item)

    add = append

    def extend(self, items: Iterable) -> None:
        self.items.extend(items)


class Storage(NamedTuple):
    """A reference to the numbers of tensors, which a torch file keeps outside of the pickle."""

    key: str
    dtype: torch.dtype
    length: int


class PickleReader(pickle.Unpickler):
    """Reads the next pickle of a file, which is at its end afterwards.

    Attributes:
        storages (dict[str, Storage]): Those that tensors of the pickle refer to.

    Raises:
        One of ``DAMAGE``: It is invalid, or truncated.
        RefusedContent: It uses operations or names that no checkpoint needs.
    """

    def __init__(self, file: io.BytesIO) -> None:
        self.names: dict[str, type[Call]] = {}
        self.storages: dict[str, Storage] = {}
        #: The object made of each part, by the part's id, and how many objects it stands for.
        self._made: dict[int, tuple[object, int] | None] = {}
        self._odd_keys = _MOST_ODD_KEYS
        content, end = _without_hashing(file.getvalue(), file.tell())
        # Python 2's strings are bytes or text; with these, either can be had back.
        super().__init__(io.BytesIO(content), encoding='utf-8', errors='surrogateescape')
        self._content = self.load()
        self._left = _MOST_OBJECTS + len(content)
        file.seek(end)

    def find_class(self, module: str, name: str) -> type[Call]:
        """A class that stands for a name."""
        full = f'{_OLD_MODULES.get(module, module)}.{name}'
        if full not in self.names:
            self.names[full] = type('Call', (Call,), {'__slots__': (), 'name': full})
        return self.names[full]

    def persistent_load(self, pid: Any) -> Call | Storage:
        """A dict or set, see :func:`_without_hashing`, or the data of a tensor."""
        if type(pid) is tuple and len(pid) == 2 and pid[1] in ('dict', 'set', 'frozenset'):
            values, name = pid
            made = self.find_class('builtins', name)()
            if values:
                is_dict = name == 'dict'
                made.extend(zip(values[::2], values[1::2], strict=True) if is_dict else values)
            return made
        if isinstance(pid, str) and (text := _STORAGE_TEXT.fullmatch(pid)):  # of protocol 0
            kind = self.find_class(*text[1].rsplit('.', 1))
            pid = ('storage', kind, text[2], '', int(text[3]))
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != 'storage':
            raise RefusedContent('it refers to something outside of its pickle, not tensor data')
        if pid[5:] not in ((), (None,)):
            raise RefusedContent('it was written by torch 0.3 or older: save it again')
        kind, key, count = pid[1], pid[2], pid[4]
        dtype = allowed_types.STORAGES[kind.name.replace('torch.cuda.', 'torch.')]
        if type(key) is not str or type(count) is not int:
            raise DamagedFile('the data of a tensor has no name or no size')
        storage = Storage(key, dtype, count)
        self.storages.setdefault(key, storage)
        return storage

    def build(self, data_of: Callable[[Storage], torch.UntypedStorage] | None = None) -> Any:
        """The objects of the pickle; ``data_of`` gives the data of tensors, where it has any.

        Raises:
            One of ``DAMAGE``: It is invalid.
            RefusedContent: It names or calls what is not allowed, nests containers too deep or in
                themselves, or unfolds to far more objects than its size.
        """
        self._data_of = data_of
        return self._build(self._content, 0)

    def _build(self, part: Any, depth: int) -> Any:
        kind = type(part)
        if kind in _PLAIN:
            self._left -= 1
            return part
        if kind is int:
            self._left -= 1
            if part.bit_length() > _MOST_BITS:
                raise RefusedContent('it holds a whole number of thousands of digits')
            return part
        if kind in _TEXTS:
            self._left -= 1 + len(part) // 16
            return part
        if kind is Storage:
            raise refuse('the data of a tensor without the tensor')
        if isinstance(part, type):
            return _value(getattr(part, 'name', ''))
        if id(part) in self._made:  # a part that is there twice is one object
            found = self._made[id(part)]
            if found is None:
                raise RefusedContent('it holds a container that holds itself')
            self._left -= found[1]
            return found[0]
        if depth > _DEEPEST:
            raise RefusedContent(f'it nests containers over {_DEEPEST} deep')
        self._made[id(part)] = None
        before = self._left
        if kind is list or kind is tuple:
            made = kind(self._each(part, depth + 1))
        else:
            made = self._build_call(part, depth + 1)
        self._left -= 1
        if self._left < 0:
            raise RefusedContent('it repeats the same data far too often for its size')
        is_array = isinstance(made, (torch.Tensor, np.ndarray))
        self._made[id(part)] = made, 1 if is_array else before - self._left
        return made

    def _each(self, parts: list | tuple, depth: int) -> list:
        self._left -= len(parts)
        return [part if type(part) in _PLAIN else self._build(part, depth) for part in parts]

    def _build_call(self, call: Call, depth: int) -> object:
        if call.name == 'builtins.getattr':  # how protocol 2 names a method
            owner, attribute = call.arguments
            return _value(f'{getattr(owner, "name", shorten(owner))}.{shorten(attribute)}')
        if call.name == 'copyreg._reconstructor':  # how protocols 0 and 1 make an object
            kind, base, _ = call.arguments
            if base.name != 'builtins.object':
                raise refuse(call.name)
            made = kind()
            made.items, made.state = call.items, call.state
            call = made
        elif call.name == 'torch._tensor._rebuild_from_type_v2':
            call = _plain_tensor(*call.arguments)
        name = call.name
        function = allowed_types.FUNCTIONS.get(name)
        if function is None:
            raise refuse(name)
        if name in allowed_types.TENSORS:
            storage, *rest = call.arguments
            arguments = [self._data(storage), storage.dtype, *self._each(rest, depth)]
        else:
            arguments = self._each(call.arguments, depth)
        if name in allowed_types.CONTAINERS:
            arguments.insert(0, self._items(call, arguments, depth))
        elif call.items:
            raise DamagedFile(f'it puts items into a {shorten(name)}')
        state = {} if call.state is None else {'state': self._build(call.state, depth)}
        try:
            return function(*arguments, **state)
        except (DamagedFile, RefusedContent):
            raise
        except DAMAGE:
            raise DamagedFile(f'it makes a {shorten(name)} of what does not fit it') from None

    def _items(self, call: Call, arguments: list, depth: int) -> list:
        """What a container is made of; its keys, if it has them, can be hashed in little time."""
        is_dict = call.name in allowed_types.DICTS
        is_set = call.name in allowed_types.SETS
        if is_dict:
            items = [(self._build(k, depth), self._build(v, depth)) for k, v in call.items]
        else:
            items = self._each(call.items, depth)
        if arguments and isinstance(arguments[0], (dict, list, tuple)):
            old = arguments.pop(0)
            items = [*(dict.items(old) if isinstance(old, dict) else old), *items]
        if is_dict or is_set:
            for key in items if is_set else [key for key, _ in items]:
                if type(key) is not str:
                    self._odd_keys -= allowed_types.is_odd_key(key)
            if self._odd_keys < 0:  # a file can give them all one hash
                raise RefusedContent('too many of its keys are tuples or huge numbers')
        return items

    def _data(self, storage: Any) -> torch.UntypedStorage:
        if not isinstance(storage, Storage) or self._data_of is None:
            raise refuse(getattr(storage, 'name', 'a tensor without data'))
        data = self._data_of(storage)
        if storage.length * storage.dtype.itemsize != data.nbytes():
            raise DamagedFile(
                f'a tensor declares {shorten(storage.length)} numbers of {storage.dtype}, but has '
                f'{data.nbytes()} bytes of data'
            )
        return data


def _without_hashing(data: bytes, at: int) -> tuple[bytes, int]:
    """The pickle at a place in data, with references in place of what makes dicts and sets; and
    where it ends.

    Hashing a tuple that nests itself, or keys that all have one hash, never ends. Also raises
    where the unpickler would take gigabytes for an index of its memo.
    """
    replaced: list[bytes] = []
    copied, count, code = at, 0, 0
    while code != pickle.STOP[0]:
        code, start, count = data[at], at, count + 1
        size = _SIZES[code]
        at += 1
        if size >= 0:
            at += size
        elif size == pickletools.UP_TO_NEWLINE:
            for _ in range(2 if code in _TWO_LINES else 1):
                at = data.index(b'\n', at) + 1
        else:
            width = _COUNT_SIZES[size]
            at += width + int.from_bytes(data[at : at + width], 'little')
        if code not in _CHECKED:
            continue
        if code in _REPLACED:
            replaced += data[copied:start], _REPLACED[code]
            copied = at
        elif code in _EXTENSIONS:
            raise RefusedContent('its pickle uses an operation that no checkpoint needs')
        else:
            index = data[start + 1 : at]
            if (int(index) if code == pickle.PUT[0] else int.from_bytes(index, 'little')) >= count:
                raise DamagedFile('an index in its pickle is too large')
    return b''.join([*replaced, data[copied:at]]), at


def _plain_tensor(function: type[Call], kind: type[Call], arguments: tuple, _: object) -> Call:
    """The plain tensor of one of another class, or with attributes."""
    name = getattr(function, 'name', shorten(function))
    if name not in allowed_types.TENSORS and name not in allowed_types.PARAMETERS:
        raise refuse(name)
    if not isinstance(kind, type) or type(arguments) is not tuple:
        raise DamagedFile('a tensor of another class has no class or no data')
    return function(*arguments)


def _value(name: str) -> object:
    """What a name stands for as a value."""
    if name not in allowed_types.VALUES:
        raise refuse(name)
    return allowed_types.VALUES[name]


def refuse(name: str) -> RefusedContent:
    """The error of a file that holds or calls what is not allowed."""
    known = 'is not among the types that a checkpoint may hold'
    if re.fullmatch(r'torch\.[a-z]+\d\w*', name):
        known = (
            f'PyTorch {torch.__version__} does not have: read it with the version that wrote it, '
            f'and convert the tensor. It {known}'
        )
    return RefusedContent(
        f'it holds {shorten(name)}, which {known} (tensors, numbers, strings, containers, numpy '
        'arrays, mmengine logs, arguments of a training). Nothing of it was run'
    )
