"""A pickle read as data: every operation is ours, and a name is looked up in a table or refused.

Python's own unpickler imports what a file names and calls it; PyTorch's ``weights_only`` one calls
constructors that allocate whatever a few bytes ask for. Here a pickle can name only the entries of
an allow-list, what is built is paid for from a :class:`Budget` before it is built, and nothing is
recursive, so that no file makes the reader crash, hang or fill the memory.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from .limits import Budget, DamagedFile, RefusedContent, shorten

# Rough weights of Python's objects in bytes: what matters is the order of magnitude.
_LIST, _DICT, _SET, _ENTRY, _SCALAR, _SLOT, _MEMO = 88, 96, 248, 100, 32, 8, 100
#: int keys stay under Python's hash modulus: beyond, a file can make all of its keys collide.
_LARGEST_KEY = 2**61 - 2
_LONGEST_INT = 64  # bytes

#: What an operation meets on a stack that the one before it should have filled, and did not.
_NONSENSE = (LookupError, TypeError, AttributeError, UnicodeError, OverflowError, struct.error)


class Known:
    """A name that a pickle may use: what stands for it, and what calling it does.

    Args:
        name (str): Dotted name in the pickle.
        call (Callable, optional): Builds the object from the arguments; the first parameter is the
            budget. None: may be named, not called.
        state (Callable, optional): ``state(made, state)`` of what ``call`` made.
        makes (type, optional): Type of what ``call`` makes; ``state`` is looked up by it.
    """

    def __init__(
        self,
        name: str,
        call: 'Callable | None' = None,
        state: 'Callable | None' = None,
        makes: 'type | None' = None,
    ) -> None:
        self.name, self.call, self.state, self.makes = name, call, state, makes


class PickleReader:
    """Reads one pickle after another from a file.

    Args:
        file (BinaryIO): Where to read; stays just behind the last pickle read.
        size (int): Bytes that are there.
        allowed (Mapping[str, object]): Dotted name to a :class:`Known`, or to the value it stands
            for.
        budget (Budget): What the objects are paid from.
        persistent_load (Callable, optional): Gives the object of a persistent id. None: refused.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        allowed: 'Mapping[str, object]',
        budget: Budget,
        persistent_load: 'Callable[[object], object] | None' = None,
    ) -> None:
        self._file, self.left, self._allowed, self._budget = file, size, allowed, budget
        self._persistent_load = persistent_load
        self._state_of = {
            known.makes: known.state
            for known in allowed.values()
            if isinstance(known, Known) and known.state is not None
        }

    def load(self) -> object:
        """The object of the next pickle.

        Raises:
            DamagedFile: Not a pickle, or one that is cut off or makes no sense.
            RefusedContent: It names something that is not in ``allowed``.
        """
        self._stack, self._below, self._memo = [], [], {}
        try:
            while (code := self.read(1)) != b'.':
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise DamagedFile(f'byte {code!r} is no pickle operation that is used in one')
                operation(self)
            if self._below or len(self._stack) != 1:
                raise DamagedFile('its pickle ends in the middle')
            return self._stack.pop()
        except _NONSENSE as error:
            raise DamagedFile(f'its pickle makes no sense ({type(error).__name__})') from error
        finally:
            self._stack, self._below, self._memo = [], [], {}

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        if count > self.left:
            raise DamagedFile('it ends early')
        self.left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise DamagedFile('it ends early')
        return data

    # Numbers and strings

    def _unpack(self, form: str) -> int:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def _push(self, value: object, cost: int = _SCALAR) -> None:
        self._budget.spend(cost + _SLOT)
        self._stack.append(value)

    def _number(self, form: str) -> None:
        self._push(self._unpack(form))

    def _long(self, form: str) -> None:
        length = self._unpack(form)
        if not 0 <= length <= _LONGEST_INT:
            raise DamagedFile(f'it holds a number of {length} bytes')
        self._push(int.from_bytes(self.read(length), 'little', signed=True), 2 * _SCALAR)

    def _text(self, form: str) -> None:
        data = self._read_block(form)
        # One wide character makes Python store the whole text at 2 or 4 bytes a character, after
        # it had begun with 1.
        top = 0 if data.isascii() else int(np.frombuffer(data, np.uint8).max())
        self._budget.spend(len(data) * (1 if top < 0xC4 else 3 if top < 0xF0 else 5))
        self._push(data.decode('utf-8', 'surrogatepass'))
        self._budget.give_back(len(data))

    def _bytes(self, form: str) -> None:
        self._push(self._read_block(form))

    def _python2_text(self, form: str) -> None:
        data = self._read_block(form)
        self._push(data.decode('ascii') if data.isascii() else data)

    def _read_block(self, form: str) -> bytes:
        length = self._unpack(form)
        if not 0 <= length <= self.left:
            raise DamagedFile('it ends early')
        self._budget.spend(length)
        return self.read(length)

    # Containers

    def _pop_mark(self) -> list:
        items = self._stack
        self._stack = self._below.pop()
        return items

    def _mark(self) -> None:
        self._budget.spend(_LIST)
        self._below.append(self._stack)
        self._stack = []

    def _tuple(self, count: 'int | None' = None) -> None:
        if count is None:
            items = self._pop_mark()
        else:
            items = [self._stack.pop() for _ in range(count)][::-1]
        self._push(tuple(items), _LIST + _SLOT * len(items))

    def _append(self) -> None:
        self._extend([self._stack.pop()])

    def _appends(self) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise DamagedFile(f'its pickle appends to a {type(target).__name__}')
        self._budget.spend(2 * _SLOT * len(items))
        target.extend(items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self._pop_mark())

    def _update(self, items: list) -> None:
        target = self._stack[-1]
        if len(items) % 2 or not isinstance(target, dict):
            raise DamagedFile(f'its pickle sets items of a {type(target).__name__}')
        self._budget.spend(_ENTRY * len(items) // 2)
        # A subclass's own method might do more than set: ConfigDict's converts its values.
        set_item = OrderedDict.__setitem__ if isinstance(target, OrderedDict) else dict.__setitem__
        for key, value in zip(items[::2], items[1::2]):
            set_item(target, check_key(key), value)

    def _dict(self) -> None:
        items = self._pop_mark()
        self._push({}, _DICT)
        self._update(items)

    def _list(self) -> None:
        items = self._pop_mark()
        self._push([], _LIST)
        self._extend(items)

    def _add_items(self) -> None:
        items = self._pop_mark()
        target = self._stack[-1]
        if type(target) is not set:
            raise DamagedFile(f'its pickle adds to a {type(target).__name__}')
        self._budget.spend(_ENTRY * len(items))
        target.update(map(check_key, items))

    def _frozenset(self) -> None:
        items = self._pop_mark()
        self._push(frozenset(map(check_key, items)), _SET + _ENTRY * len(items))

    # The memo

    def _get(self, form: str) -> None:
        self._budget.spend(_SLOT)
        self._stack.append(self._memo[self._unpack(form)])

    def _put(self, form: str) -> None:
        self._remember(self._unpack(form))

    def _remember(self, index: 'int | None' = None) -> None:
        index = len(self._memo) if index is None else index
        if index not in self._memo:
            self._budget.spend(_MEMO)
        self._memo[index] = self._stack[-1]

    def _duplicate(self) -> None:
        self._budget.spend(_SLOT)
        self._stack.append(self._stack[-1])

    def _drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    # Names and what is built from them

    def _global_lines(self) -> None:
        self._push_global(self._line(), self._line())

    def _global_from_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise DamagedFile('its pickle names an object by something that is no text')
        self._push_global(module, name)

    def _line(self) -> str:
        data = bytearray()
        while (byte := self.read(1)) != b'\n':
            data += byte
            if len(data) > 300:  # no dotted name is that long
                raise DamagedFile('its pickle has a name of over 300 bytes')
        return data.decode('utf-8')

    def _push_global(self, module: str, name: str) -> None:
        # Python 2's name for the module, which protocol 2 still writes.
        full = f'{"builtins" if module == "__builtin__" else module}.{name}'
        if full not in self._allowed:
            raise refuse_type(full)
        self._push(self._allowed[full])

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._build(function, arguments)

    def _build(self, function: object, arguments: object) -> None:
        if not isinstance(function, Known) or function.call is None:
            name = function.name if isinstance(function, Known) else type(function).__name__
            raise RefusedContent(f'it calls {shorten(name)}, which a checkpoint may not do')
        if type(arguments) is not tuple:
            raise DamagedFile(f'its pickle calls {function.name} with no arguments')
        self._push(function.call(self._budget, *arguments), _DICT)

    def _set_state(self) -> None:
        state = self._stack.pop()
        made = self._stack[-1]
        # By base class: every numpy type has a dtype class of its own.
        kinds = [kind for kind in type(made).__mro__ if kind in self._state_of]
        if not kinds:
            raise RefusedContent(
                f'it sets attributes of a {type(made).__name__}, which a checkpoint may not do'
            )
        self._state_of[kinds[0]](made, state)

    def _persistent(self) -> None:
        if self._persistent_load is None:
            raise RefusedContent('it refers to data outside of its pickle')
        self._push(self._persistent_load(self._stack.pop()))


def check_key(key: object) -> object:
    """A key that a dict or set of a checkpoint may have.

    A tuple nested in itself takes for ever to hash, and huge ints can all be given one hash.

    Raises:
        RefusedContent: Neither text, a number, bytes nor None.
    """
    if type(key) not in (str, int, float, bytes, bool, type(None)):
        raise RefusedContent(f'it uses a {type(key).__name__} as a key')
    if type(key) is int and abs(key) > _LARGEST_KEY:
        raise RefusedContent('it uses a number of over 60 bits as a key')
    return key


def refuse_type(name: str) -> RefusedContent:
    """The error of a file that holds an object of a type that is not allowed."""
    return RefusedContent(
        f'it holds {shorten(name)}, which is not among the types that a checkpoint may hold '
        '(tensors, numbers, strings, containers, numpy arrays, mmengine logs). Nothing of it was '
        'run'
    )


def _with(method: Callable, *arguments: object) -> Callable:
    return lambda reader: method(reader, *arguments)


# The operations that pickle protocols 2 to 5 write. Those of protocols 0 and 1, which spell numbers
# out as text, and of the copyreg registry are in no checkpoint.
_R = PickleReader
_OPERATIONS = {
    b'\x80': _with(_R.read, 1),  # PROTO
    b'\x95': _with(_R.read, 8),  # FRAME: a hint to readers that buffer
    b'N': _with(_R._push, None, 0),
    b'\x88': _with(_R._push, True, 0),
    b'\x89': _with(_R._push, False, 0),
    b'K': _with(_R._number, '<B'),
    b'M': _with(_R._number, '<H'),
    b'J': _with(_R._number, '<i'),
    b'G': _with(_R._number, '>d'),
    b'\x8a': _with(_R._long, '<B'),
    b'\x8b': _with(_R._long, '<i'),
    b'\x8c': _with(_R._text, '<B'),
    b'X': _with(_R._text, '<I'),
    b'\x8d': _with(_R._text, '<Q'),
    b'C': _with(_R._bytes, '<B'),
    b'B': _with(_R._bytes, '<I'),
    b'\x8e': _with(_R._bytes, '<Q'),
    b'\x96': _with(_R._bytes, '<Q'),  # BYTEARRAY8: only ever the data of an array
    b'U': _with(_R._python2_text, '<B'),
    b'T': _with(_R._python2_text, '<i'),
    b'(': _R._mark,
    b')': _with(_R._push, (), 0),
    b'\x85': _with(_R._tuple, 1),
    b'\x86': _with(_R._tuple, 2),
    b'\x87': _with(_R._tuple, 3),
    b't': _R._tuple,
    b']': lambda reader: reader._push([], _LIST),
    b'a': _R._append,
    b'e': _R._appends,
    b'l': _R._list,
    b'}': lambda reader: reader._push({}, _DICT),
    b's': _R._set_item,
    b'u': _R._set_items,
    b'd': _R._dict,
    b'\x8f': lambda reader: reader._push(set(), _SET),
    b'\x90': _R._add_items,
    b'\x91': _R._frozenset,
    b'h': _with(_R._get, '<B'),
    b'j': _with(_R._get, '<I'),
    b'q': _with(_R._put, '<B'),
    b'r': _with(_R._put, '<I'),
    b'\x94': _R._remember,
    b'2': _R._duplicate,
    b'0': _R._drop,
    b'1': lambda reader: reader._pop_mark(),
    b'c': _R._global_lines,
    b'\x93': _R._global_from_stack,
    b'R': _R._reduce,
    b'\x81': _R._reduce,  # NEWOBJ: the same, of a class
    b'b': _R._set_state,
    b'Q': _R._persistent,
}
