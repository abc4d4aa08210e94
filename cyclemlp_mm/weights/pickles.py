"""Pickles read as data, in two steps that run nothing of the file.

Python's own unpickler makes a :class:`Call` of everything that a pickle names or calls, which only
stores what the file holds. Then :meth:`PickleReader.build` makes the real objects, of the types
of :mod:`.allowed_types`, or raises. (``torch.load(weights_only=True)`` had remote code execution
before torch 2.6, memory corruption before 2.10, and reads only protocol 2.)
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
_TEXTS = {str, bytes, bytearray}
_PLAIN = {int, float, bool, type(None), torch.Tensor, *_TEXTS}

#: Operations that hash what the file puts into a dict or set, and what takes their place: calls of
#: ``persistent_load((values, kind))``. Frames have other lengths then.
_REPLACED = {'FRAME': b''}
for _name, _values, _kind in (
    ('EMPTY_DICT', pickle.EMPTY_TUPLE, b'dict'),
    ('DICT', pickle.TUPLE, b'dict'),
    ('EMPTY_SET', pickle.EMPTY_TUPLE, b'set'),
    ('FROZENSET', pickle.TUPLE, b'frozenset'),
):
    _REPLACED[_name] = _values + pickle.SHORT_BINUNICODE + bytes([len(_kind)]) + _kind
    _REPLACED[_name] += pickle.TUPLE2 + pickle.BINPERSID


class Call:
    """What a pickle calls, with which arguments, and what it puts into the result.

    There is a subclass for each name in the file; the subclass itself stands for the name.
    """

    name: str

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


class Storage(NamedTuple):
    """A reference to the numbers of tensors, which a torch file keeps outside of the pickle."""

    key: str
    dtype: torch.dtype
    length: int


class PickleReader(pickle.Unpickler):
    """Reads the next pickle of a file, or raises RefusedContent or one of ``DAMAGE``."""

    def __init__(self, file: io.BytesIO) -> None:
        self.names: dict[str, type[Call]] = {}
        self.storages: dict[str, Storage] = {}  # that its tensors refer to, by key
        #: What was made of each part, by the part's id, and how many objects it stands for.
        self._made: dict[int, tuple[object, int] | None] = {}
        self._odd_keys = _MOST_ODD_KEYS
        content = _without_hashing(file)
        # Python 2's strings are bytes or text; with these, either can be had back.
        super().__init__(io.BytesIO(content), encoding='utf-8', errors='surrogateescape')
        self._content = self.load()
        self._left = _MOST_OBJECTS + len(content)

    def find_class(self, module: str, name: str) -> type[Call]:
        """A class that stands for a name."""
        full = f'{_OLD_MODULES.get(module, module)}.{name}'
        if full not in self.names:
            self.names[full] = type('Call', (Call,), {'name': full})
        return self.names[full]

    def persistent_load(self, pid: Any) -> Call | Storage:
        """A dict or set, see :func:`_without_hashing`, or the data of a tensor."""
        if type(pid) is tuple and len(pid) == 2 and pid[1] in ('dict', 'set', 'frozenset'):
            values, name = pid
            made = self.find_class('builtins', name)()
            is_dict = name == 'dict'
            made.items.extend(zip(values[::2], values[1::2], strict=True) if is_dict else values)
            return made
        if isinstance(pid, str) and (text := _STORAGE_TEXT.fullmatch(pid)):  # of protocol 0
            kind = self.find_class(*text[1].rsplit('.', 1))
            pid = ('storage', kind, text[2], '', int(text[3]))
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != 'storage':
            raise RefusedContent('it refers to something outside of its pickle, not tensor data')
        if pid[5:] not in ((), (None,)):
            raise RefusedContent('it was written by torch 0.3 or older: save it again')
        kind, key, count = pid[1], pid[2], pid[4]
        name = kind.name.replace('torch.cuda.', 'torch.')
        if name not in allowed_types.STORAGES:
            fix = 'quantised tensors are not read: save the weights they were made of'
            raise RefusedContent(f'it holds tensors of {shorten(name)}; {fix}')
        dtype = allowed_types.STORAGES[name]
        if type(key) is not str or type(count) is not int:
            raise DamagedFile('the data of a tensor has no name or no size')
        storage = Storage(key, dtype, count)
        self.storages.setdefault(key, storage)
        return storage

    def build(self, data_of: Callable[[Storage], torch.UntypedStorage] | None = None) -> Any:
        """The objects of the pickle; ``data_of`` gives the data of tensors, where it has any."""
        self._data_of = data_of
        return self._build(self._content, 0)

    def _build(self, part: Any, depth: int) -> Any:
        kind = type(part)
        self._left -= 1 + (len(part) // 16 if kind in _TEXTS else 0)
        if kind is int and part.bit_length() > _MOST_BITS:
            raise RefusedContent('it holds a whole number of thousands of digits')
        if kind in _PLAIN:
            return part
        if kind is Storage:
            raise refuse('the data of a tensor without the tensor')
        if isinstance(part, type):
            return _value(part.name)
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
        if kind in (list, tuple):
            made = kind(self._each(part, depth + 1))
        else:
            made = self._build_call(part, depth + 1)
        if self._left < 0:
            raise RefusedContent('it repeats the same data far too often for its size')
        is_array = isinstance(made, (torch.Tensor, np.ndarray))
        self._made[id(part)] = made, 1 if is_array else before - self._left
        return made

    def _each(self, parts: list | tuple, depth: int) -> list:
        return [self._build(part, depth) for part in parts]

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
        elif call.name == 'torch._tensor._rebuild_from_type_v2':  # of another class, or attributes
            function, _, arguments, _ = call.arguments
            if getattr(function, 'name', '') not in allowed_types.PLAIN_TENSORS:
                raise refuse(getattr(function, 'name', shorten(function)))
            call = function(*arguments)
        name, arguments = call.name, call.arguments
        if name not in allowed_types.FUNCTIONS:
            raise refuse(name)
        if name in allowed_types.TENSORS:
            arguments = self._numbers(arguments[0]), *arguments[1:]
        arguments = self._each(arguments, depth)
        if name in allowed_types.CONTAINERS:
            arguments.insert(0, self._items(call, arguments, depth))
        elif call.items:
            raise DamagedFile(f'it puts items into a {shorten(name)}')
        state = {} if call.state is None else {'state': self._build(call.state, depth)}
        try:
            return allowed_types.FUNCTIONS[name](*arguments, **state)
        except (DamagedFile, RefusedContent):
            raise
        except DAMAGE:
            raise DamagedFile(f'it makes a {shorten(name)} of what does not fit it') from None

    def _items(self, call: Call, arguments: list, depth: int) -> list:
        """What a container is made of; its keys, if it has them, can be hashed in little time."""
        is_dict = call.name in allowed_types.DICTS
        if is_dict:
            items = [(self._build(k, depth), self._build(v, depth)) for k, v in call.items]
        else:
            items = self._each(call.items, depth)
        if arguments and isinstance(arguments[0], (dict, list, tuple)):
            old = arguments.pop(0)
            items = [*(dict.items(old) if isinstance(old, dict) else old), *items]
        if is_dict or call.name in allowed_types.SETS:
            keys = [key for key, _ in items] if is_dict else items
            self._odd_keys -= sum(map(_is_odd_key, keys))
            if self._odd_keys < 0:  # a file can give them all one hash
                raise RefusedContent('too many of its keys are tuples or huge numbers')
        return items

    def _numbers(self, storage: Any) -> torch.Tensor:
        """All numbers of a storage, in a row."""
        if not isinstance(storage, Storage) or self._data_of is None:
            raise refuse(getattr(storage, 'name', 'a tensor without data'))
        data = self._data_of(storage)
        if storage.length * storage.dtype.itemsize != data.nbytes():
            raise DamagedFile(
                f'a tensor has {data.nbytes()} bytes for {shorten(storage.length)} {storage.dtype}'
            )
        return torch.empty(0, dtype=storage.dtype).set_(data)


def _operations(file: io.BytesIO) -> Iterator[tuple]:
    try:
        yield from pickletools.genops(file)
    except UnicodeDecodeError as error:
        what = "its pickle is Python 2's protocol 0: save it again with protocol 2 or later"
        raise RefusedContent(what) from error


def _without_hashing(file: io.BytesIO) -> bytes:
    """The next pickle of a file, with references in place of what makes dicts and sets.

    Hashing a tuple that nests itself, or keys that all have one hash, never ends. Also raises
    where the unpickler would take gigabytes for an index of its memo.
    """
    data, parts, copied = file.getbuffer(), [], file.tell()
    for count, (operation, argument, at) in enumerate(_operations(file)):
        name = operation.name
        if name in _REPLACED:
            parts += data[copied:at], _REPLACED[name]
            copied = at + (9 if name == 'FRAME' else 1)
        elif name in ('EXT1', 'EXT2', 'EXT4'):
            raise RefusedContent('its pickle uses an operation that no checkpoint needs')
        elif name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > count:
            raise DamagedFile('an index in its pickle is too large')
    return b''.join([*parts, data[copied : file.tell()]])


def _is_odd_key(key: object) -> bool:
    """Whether a key of a dict or set can have a hash of the file's choice.

    Raises for other types, and for large tuples: one nested in itself takes forever to hash.
    """
    if isinstance(key, (str, float, bytes, type(None))):
        return False
    if isinstance(key, int):
        return abs(key) >= 2**61 - 1  # Python's hash modulus
    left, waiting = 100, [key]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (tuple, frozenset)) and len(part) < left:
            left -= len(part) + 1
            waiting.extend(part)
        elif not isinstance(part, allowed_types.KEYS):
            raise RefusedContent(f'it uses a {type(key).__name__} as a key')
    return True


def _value(name: str) -> object:
    """What a name stands for as a value."""
    if name not in allowed_types.VALUES:
        raise refuse(name)
    return allowed_types.VALUES[name]


def refuse(name: str) -> RefusedContent:
    """The error of a file that holds or calls what is not allowed."""
    known = 'is not among the types that a checkpoint may hold'
    if re.fullmatch(r'torch\.[a-z]+\d\w*', name):
        known = f'PyTorch {torch.__version__} does not have: convert it where it was written'
    return RefusedContent(
        f'it holds {shorten(name)}, which {known} (tensors, numbers, strings, containers, numpy '
        'arrays, mmengine logs, arguments of a training). Nothing of it was run'
    )
