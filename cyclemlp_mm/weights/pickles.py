"""Pickles read as data, in two steps that run nothing of the file.

Python's own unpickler makes a :class:`Call` of everything that a pickle names or calls, which only
remembers what the file says. Then :class:`_Builder` makes the real objects, of the types of
:mod:`.allowed_types`, or raises.

``torch.load(weights_only=True)`` is not used: it had remote code execution and memory corruption
before torch 2.10, and reads only protocol 2.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from . import allowed_types
from .limits import DamagedFile, RefusedContent, shorten

_DEEPEST = 100
_MOST_OBJECTS = 1_000_000  # and one for each byte of the file
_MOST_ODD_KEYS = 10_000
_MOST_NAMES = 1000
_MOST_DICTS = 500_000
_MOST_BITS = 10_000  # Python writes no number of over 4300 digits
_STORAGE_TEXT = re.compile(r"\('storage', <class '([\w.]+)'>, '(\w+)', '[^']*', (\d{1,18})\)")
_OLD_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # Python 2's, and protocol 2's
_EXTENSIONS = {'EXT1', 'EXT2', 'EXT4'}
_MEMO_WRITES = {'PUT', 'BINPUT', 'LONG_BINPUT'}


def _reference(values: bytes, kind: str) -> bytes:
    """Operations for :meth:`_Reader.persistent_load` of the tuple (values, kind)."""
    text = pickle.SHORT_BINUNICODE + bytes([len(kind)]) + kind.encode()
    return values + text + pickle.TUPLE2 + pickle.BINPERSID


#: Operations that hash what the file puts into a dict or set, and what takes their place.
_REPLACED = {
    'EMPTY_DICT': _reference(pickle.EMPTY_TUPLE, 'dict'),
    'DICT': _reference(pickle.TUPLE, 'dict'),
    'EMPTY_SET': _reference(pickle.EMPTY_TUPLE, 'set'),
    'FROZENSET': _reference(pickle.TUPLE, 'frozenset'),
    'FRAME': b'',  # frames have other lengths then
}
_HASHING = ('dict', 'set', 'frozenset')

DataOf = Callable[['Storage'], torch.UntypedStorage]


class Call:
    """What a pickle calls, with which arguments, and what it puts into the result.

    There is a subclass for each name in the file; the subclass itself stands for the name.
    """

    __slots__ = ('arguments', 'items', 'state')
    name: ClassVar[str]

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

    def extend(self, items: list) -> None:
        self.items.extend(items)


class Storage(NamedTuple):
    """A reference to the numbers of tensors, which a torch file keeps outside of the pickle."""

    key: str
    dtype: torch.dtype
    count: int


class Pickled(NamedTuple):
    """A pickle that was read, with nothing made of it yet."""

    content: object
    storages: dict[str, Storage]
    size: int

    def build(self, data_of: DataOf | None = None) -> object:
        """The objects of the pickle.

        Args:
            data_of (Callable, optional): Gives the data of tensors. Defaults to None: the file has
                none.

        Raises:
            DamagedFile: It makes no sense.
            RefusedContent: It names or calls what is not allowed, nests containers too deep or in
                themselves, or unfolds to far more objects than its size.
        """
        with _errors_as_damage():
            return _Builder(self.size, data_of).build(self.content)


def load_pickle(file: io.BytesIO) -> Pickled:
    """Read the next pickle of a file; the file is at its end afterwards.

    Raises:
        DamagedFile: It is no pickle, or cut off.
        RefusedContent: It uses operations or names that no checkpoint needs.
    """
    start = file.tell()
    with _errors_as_damage():
        reader = _Reader(_without_hashing(file))
        return Pickled(reader.load(), reader.storages, file.tell() - start)


def read_pickle(file: io.BytesIO) -> object:
    """The objects of the next pickle of a file, which holds no tensors of torch."""
    return load_pickle(file).build()


@contextmanager
def _errors_as_damage() -> Iterator[None]:
    try:
        yield
    except (DamagedFile, RefusedContent):
        raise
    except Exception as error:  # not its text, which may spell out an endless container
        raise DamagedFile(f'its pickle makes no sense: {type(error).__name__}') from None


def _without_hashing(file: io.BytesIO) -> bytes:
    """The next pickle, with references in place of the operations that make dicts and sets.

    Hashing a tuple that nests itself, or keys that all have one hash, never ends. Also raises
    where the unpickler would take gigabytes for an index of its memo.
    """
    replaced, content, copied, dicts = bytearray(), file.getbuffer(), file.tell(), 0
    for count, (operation, argument, at) in enumerate(pickletools.genops(file)):
        name = operation.name
        if name in _EXTENSIONS:
            raise RefusedContent('its pickle uses an operation that no checkpoint needs')
        if name in _MEMO_WRITES and argument > count:
            raise DamagedFile('an index in its pickle is too large')
        if name in _REPLACED:
            dicts += 1
            if dicts > _MOST_DICTS:
                raise RefusedContent(f'it makes over {_MOST_DICTS} dicts')
            replaced += content[copied:at]
            replaced += _REPLACED[name]
            copied = at + (9 if name == 'FRAME' else 1)
    replaced += content[copied : file.tell()]
    return bytes(replaced)


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        # Python 2's strings are bytes or text; with these, either can be had back from the text.
        super().__init__(io.BytesIO(content), encoding='utf-8', errors='surrogateescape')
        self.names: dict[str, type[Call]] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> type[Call]:
        full = f'{_OLD_MODULES.get(module, module)}.{name}'
        if full not in self.names:
            if len(self.names) >= _MOST_NAMES:
                raise refuse(full)
            self.names[full] = type('Call', (Call,), {'__slots__': (), 'name': full})
        return self.names[full]

    def persistent_load(self, pid: object) -> Call | Storage:
        """A dict or set, see :func:`_without_hashing`, or the data of a tensor."""
        if type(pid) is tuple and len(pid) == 2 and pid[1] in _HASHING:
            values, name = pid
            made = self.find_class('builtins', name)()
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


class _Builder:
    """Makes the real objects of a pickle."""

    def __init__(self, size: int, data_of: DataOf | None) -> None:
        self._left, self._odd_keys, self._data_of = _MOST_OBJECTS + size, _MOST_ODD_KEYS, data_of
        #: The object of each part by its id, and how many objects it stands for.
        self._made: dict[int, tuple[object, int] | None] = {}

    def build(self, part: object, depth: int = 0) -> object:
        """The object of a part of a pickle; a part that is there twice is one object."""
        if isinstance(part, (Call, list, tuple)):
            return self._build_once(part, depth)
        if isinstance(part, type):
            return _value(part.name)
        if isinstance(part, int) and part.bit_length() > _MOST_BITS:
            raise RefusedContent('it holds a whole number of thousands of digits')
        self._spend(1 + len(part) // 16 if isinstance(part, (str, bytes, bytearray)) else 1)
        return part

    def _build_once(self, part: Call | list | tuple, depth: int) -> object:
        if id(part) in self._made:
            if self._made[id(part)] is None:
                raise RefusedContent('it holds a container that holds itself')
            made, cost = self._made[id(part)]
            self._spend(cost)
            return made
        if isinstance(part, Storage):
            raise refuse('the data of a tensor without the tensor')
        if depth > _DEEPEST:
            raise RefusedContent(f'it nests containers over {_DEEPEST} deep')
        self._made[id(part)] = None
        before = self._left
        self._spend(1)
        if isinstance(part, Call):
            made = self._build_call(part, depth + 1)
        else:
            made = type(part)(self._each(part, depth + 1))
        is_array = isinstance(made, (torch.Tensor, np.ndarray))
        self._made[id(part)] = made, 1 if is_array else before - self._left
        return made

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise RefusedContent('it refers to the same data over and over, to make much of little')

    def _build_call(self, call: Call, depth: int) -> object:
        if call.name == 'builtins.getattr':  # how protocol 2 names a method
            owner, attribute = call.arguments
            return _value(f'{getattr(owner, "name", shorten(owner))}.{shorten(attribute)}')
        if call.name == 'copyreg._reconstructor':
            call = _reconstructed(call, *call.arguments)
        elif call.name == 'torch._tensor._rebuild_from_type_v2':
            call = _plain_tensor(*call.arguments)
        name, arguments, more = call.name, call.arguments, {}
        if name not in allowed_types.FUNCTIONS:
            raise refuse(name)
        if name in allowed_types.TENSORS:
            arguments = [
                self._data(arguments[0]),
                arguments[0].dtype,
                *self._each(arguments[1:], depth),
            ]
        else:
            arguments = self._each(arguments, depth)
        is_dict, is_set = name in allowed_types.DICTS, name in allowed_types.SETS
        if is_dict:
            self._spend(len(call.items))
            items = [(self.build(k, depth), self.build(v, depth)) for k, v in call.items]
        else:
            items = self._each(call.items, depth)
        if call.state is not None:
            more['state'] = self.build(call.state, depth)
        if is_dict or is_set or name in allowed_types.SEQUENCES:
            if arguments and isinstance(arguments[0], (dict, list, tuple)):
                old = arguments.pop(0)
                items = [*(dict.items(old) if isinstance(old, dict) else old), *items]
            if is_dict or is_set:
                self._check_keys(items if is_set else [key for key, _ in items])
            arguments.insert(0, items)
        elif items:
            raise DamagedFile(f'it puts items into a {shorten(name)}')
        try:
            return allowed_types.FUNCTIONS[name](*arguments, **more)
        except (DamagedFile, RefusedContent):
            raise
        except Exception:
            raise DamagedFile(f'it makes a {shorten(name)} of what does not fit it') from None

    def _each(self, parts: list | tuple, depth: int) -> list:
        return [self.build(part, depth) for part in parts]

    def _data(self, storage: object) -> torch.UntypedStorage:
        if not isinstance(storage, Storage) or self._data_of is None:
            raise refuse(getattr(storage, 'name', 'a tensor without data'))
        data = self._data_of(storage)
        if storage.count * storage.dtype.itemsize != data.nbytes():
            raise DamagedFile(
                f'a tensor declares {shorten(storage.count)} numbers of {storage.dtype}, but has '
                f'{data.nbytes()} bytes of data'
            )
        return data

    def _check_keys(self, keys: list) -> None:
        self._odd_keys -= sum(allowed_types.is_odd_key(key) for key in keys if type(key) is not str)
        if self._odd_keys < 0:  # a file can give them all one hash
            raise RefusedContent(f'over {_MOST_ODD_KEYS} of its keys are tuples or huge numbers')


def _plain_tensor(function: type[Call], kind: type[Call], arguments: tuple, _: object) -> Call:
    """The plain tensor of one of another class, or with attributes."""
    name = getattr(function, 'name', shorten(function))
    if name not in allowed_types.TENSORS and name not in allowed_types.PARAMETERS:
        raise refuse(name)
    if not isinstance(kind, type) or type(arguments) is not tuple:
        raise DamagedFile('a tensor of another class has no class or no data')
    return function(*arguments)


def _reconstructed(call: Call, kind: type[Call], base: type[Call], _: object) -> Call:
    """How protocols 0 and 1 make an object whose attributes follow."""
    if base.name != 'builtins.object':
        raise refuse(call.name)
    made = kind()
    made.items, made.state = call.items, call.state
    return made


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
