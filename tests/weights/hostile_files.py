"""Files that a checkpoint reader must survive: they run code, lie about sizes, or are damaged.

Written from what the formats allow, apart from the reader. Tables of name to content.
"""

import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'


class Hostile:
    """Unpickled, it makes a folder: the sign that code was run."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def hiding_places(mark):
    """Objects with a :class:`Hostile` somewhere inside."""
    history, ordered = HistoryBuffer(), OrderedDict(a=torch.ones(1))
    history.note = Hostile(mark)
    ordered._metadata = {'': Hostile(mark)}
    objects = np.empty(1, object)
    objects[0] = Hostile(mark)
    return {
        'bare': Hostile(mark),
        'list': [[(1, {'x': [Hostile(mark)]})]],
        'key': {'a': {(1, 2): Hostile(mark)}},
        'history': {'log_scalars': {'loss': history}},
        'config': ConfigDict(a=dict(b=[Hostile(mark)])),
        'metadata': ordered,
        'array': objects,
        'set': {'s': frozenset([Hostile(mark)])},
    }


def damaged(whole, count, seed):
    """Truncated and bit-flipped copies of a file."""
    rng = random.Random(seed)
    for i in range(count):
        if i % 3 == 0:
            yield f'cut{i}', whole[: rng.randrange(len(whole))]
            continue
        changed = bytearray(whole)
        for _ in range(1 if i % 3 == 1 else 4):
            changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        yield f'flip{i}', bytes(changed)


# Pickles, operation by operation

PROTO, STOP = b'\x80\x02', b'.'


def text(value):
    data = value.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def number(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
    return b'\x8a' + bytes([len(data)]) + data


def name(dotted):
    module, _, last = dotted.rpartition('.')
    return b'c' + module.encode() + b'\n' + last.encode() + b'\n'


def tup(*parts):
    return b'(' + b''.join(parts) + b't'


def items(*parts):
    return b'](' + b''.join(parts) + b'e'


def call(function, *arguments):
    return name(function) + tup(*arguments) + b'R'


def blob(data):
    return b'B' + struct.pack('<I', len(data)) + data


def dtype(code):
    minus = b'J\xff\xff\xff\xff'
    state = tup(b'K\x03', text('<'), b'NNN', minus, minus, b'K\x00')
    return call('numpy.dtype', text(code), b'\x89', b'\x88') + state + b'b'


def array(shape, data, code='f4', order=b'\x89'):
    """A numpy array that says ``shape`` and has ``data``."""
    empty = name('numpy.ndarray'), b'K\x00\x85', b'C\x01b'
    made = call('numpy.core.multiarray._reconstruct', *empty)
    return made + tup(b'K\x01', tup(*map(number, shape)), dtype(code), order, blob(data)) + b'b'


def tensor(key, count, size, stride, offset=0, kind='torch.FloatStorage', view=b''):
    storage = tup(text('storage'), name(kind), text(key), text('cpu'), number(count), view) + b'Q'
    sizes = [tup(*map(number, part)) for part in (size, stride)]
    hooks = call('collections.OrderedDict')
    function = 'torch._utils._rebuild_tensor_v2'
    return call(function, storage, number(offset), *sizes, b'\x89', hooks)


def whole(value):
    return PROTO + value + STOP


def entry(key, value):
    return whole(b'}' + text(key) + value + b's')


def rebuilt(function, kind, *arguments):
    """A tensor of another class, or with attributes."""
    rebuild = 'torch._tensor._rebuild_from_type_v2'
    return entry('w', call(rebuild, name(function), name(kind), *arguments))


ONES = np.ones(16, np.float32).tobytes()
HUGE = struct.pack('<Q', 1 << 60)
NESTED = b'K\x01' + b'2\x86' * 64
COLLIDING = [number(i * ((1 << 61) - 1)) for i in range(1, 60_000)]

#: Bare pickles, as of Paddle: a few bytes that ask for much, or make no sense.
PICKLES = {
    'shape': entry('w', array((1 << 40,), ONES)),
    'shape_negative': entry('w', array((-4,), ONES)),
    'shape_without_data': entry('w', array((1 << 40,), b'')),
    'dtype_object': entry('w', array((1,), ONES, 'O8')),
    'dtype_other': entry('w', array((16,), ONES, 'i2')),
    'bytes8': PROTO + b'\x8e' + HUGE + b'x',
    'long4_negative': PROTO + b'\x8b\xff\xff\xff\xffx',
    'bytearray_of': entry('w', call('builtins.bytearray', number(1 << 40))),
    'encode': entry('w', call('_codecs.encode', text('x' * 1000), text('idna'))),
    'lists': whole(b'(' * 1_000_000 + b'l' * 1_000_000),
    'memo_far': whole(b'Nr\xff\xff\xff\xff'),
    'deep': whole(b']' * 50_000 + b'a' * 49_999),
    'odd_items': whole(b'}(NNNu'),
    'pop_all': whole(b'0' * 10),
    'no_stop': PROTO + b'N' * 100,
    'history': entry('h', name(HISTORY) + b')\x81}b'),
    'function': entry('w', name('torch._utils._rebuild_tensor_v2')),
    'getattr': entry('w', call('builtins.getattr', text('x'), text('__class__'))),
    'extension': whole(b'\x82\x01'),
    'instance': PROTO + b'(ios\nsystem\n.',
    'tensor_of_code': rebuilt('os.system', 'torch.Tensor', tup(text('true')), b'}'),
    'tensor_of_dict': rebuilt('collections.OrderedDict', 'torch.Tensor', b')', b'}'),
    'tensor_of_list': rebuilt('torch._utils._rebuild_tensor_v2', 'torch.Tensor', b']', b'}'),
    'tensor_of_nothing': rebuilt('torch._utils._rebuild_tensor_v2', 'torch.Tensor', b')', b'}'),
    'tensor_cut_short': rebuilt('torch._utils._rebuild_tensor_v2', 'torch.Tensor'),
    'ints': pickle.dumps(list(range(1000)), 2),
}


def torch_zip(pickled, records=(), compression=zipfile.ZIP_STORED, extra=()):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', compression) as archive:
        archive.writestr('a/data.pkl', pickled)
        archive.writestr('a/byteorder', 'little')
        for key, content in records:
            archive.writestr(f'a/data/{key}', content)
        for name in extra:
            archive.writestr(f'a/{name}', 'x')
    return out.getvalue()


def zip_of(*arguments, **kwargs):
    return torch_zip(entry('w', tensor('0', *arguments, **kwargs)), [('0', ONES)])


GOOD = entry('w', tensor('0', 16, (4, 4), (4, 1)))
ZIP = torch_zip(GOOD, [('0', ONES)])
#: Zip files of torch.save that say more than they hold.
ZIPS = {
    'storage': zip_of(1 << 60, (4,), (1,)),
    'storage_type': zip_of(16, (4,), (1,), kind='torch.DoubleStorage'),
    'size': zip_of(16, (1 << 40,), (1,)),
    'expanded': zip_of(16, (1 << 40,), (0,)),
    'offset': zip_of(16, (4,), (1,), 13),
    'stride_negative': zip_of(16, (2,), (-1,)),
    'no_record': torch_zip(GOOD),
    'twice': torch_zip(GOOD, [('0', ONES), ('1', ONES)]).replace(b'data/1', b'data/0'),
    'no_pickle': ZIP.replace(b'data.pkl', b'dota.pkl'),
    'bomb': torch_zip(GOOD, [('0', b'\0' * 20_000_000)], zipfile.ZIP_DEFLATED),
    'before': b'#!/bin/sh\n' + ZIP,
    'script': torch_zip(GOOD, [('0', ONES)], extra=('constants.pkl',)),
}


def legacy(objects, keys, data):
    """A file of torch.save before 1.6: pickles one after another, then the numbers."""
    system = dict(protocol_version=1001, little_endian=True, type_sizes={})
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    return b''.join([*parts, objects, pickle.dumps(keys, 2), data])


def legacy_of(count=16, size=(16,), stride=(1,), keys=('0',), data=b'', view=b'N'):
    data = data or struct.pack('<Q', 16) + ONES
    return legacy(entry('w', tensor('0', count, size, stride, view=view)), list(keys), data)


#: Legacy files that say more than they hold.
LEGACY = {
    'storage': legacy_of(1 << 60),
    'size': legacy_of(size=(1 << 40,)),
    'no_keys': legacy_of(keys=()),
    'keys_twice': legacy_of(keys=('0', '0')),
    'short_data': legacy_of(data=struct.pack('<Q', 16) + ONES[:-1]),
    'data_size': legacy_of(data=HUGE + ONES),
    'view': legacy_of(view=tup(text('v'), number(0), number(1 << 60))),
}


def safetensors_of(header, length=None):
    return struct.pack('<Q', len(header) if length is None else length) + header + b'\0' * 64


_HEADER = b'{"w":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}'
#: Files of safetensors with a header that is wrong.
SAFETENSORS = {
    'length': safetensors_of(_HEADER, 99_000_000),
    'no_json': safetensors_of(b'{"w":'),
    'deep': safetensors_of(b'{"w":' + b'[' * 100_000),
    'shape': safetensors_of(_HEADER.replace(b'[4,4]', b'[1099511627776]')),
    'offsets': safetensors_of(_HEADER.replace(b'64]', b'1099511627776]')),
    'dtype': safetensors_of(_HEADER.replace(b'F32', b'X9')),
}
GROUPS = dict(pickle=PICKLES, zip=ZIPS, legacy=LEGACY, safetensors=SAFETENSORS)


def endless(value):
    """Pickles of a few bytes with ``value`` (operations) wherever something could spell it."""
    made = name('argparse.Namespace') + b')\x81}' + text('a')
    ordered, metadata = call('collections.OrderedDict'), b'}' + text('_metadata')
    return {
        'dtype': entry('w', call('numpy.dtype', value)),
        'name': entry('w', call('builtins.getattr', name('torch.Tensor'), value)),
        'config': entry('w', call('mmengine.config.config.ConfigDict', b'}' + value + b'Ns')),
        'function': whole(value + b')R'),
        'persistent': whole(value + b'Q'),
        'state': whole(value + b'}b'),
        'key': whole(b'}' + value + b'Ns'),
        'member': whole(b'\x8f(' + value + b'\x90'),
        'frozen': whole(b'(' + value + b'\x91'),
        'set of': whole(call('builtins.set', items(value))),
        'arguments': whole(made + value + b'sb'),
        'metadata': whole(ordered + metadata + value + b'sb'),
        'alone': whole(value),
    }


def doubled(begin, end):
    """Containers that hold the one before twice."""
    refer = (bytes([i]) for i in range(63))
    nested = (
        begin + b'q' + bytes([i + 1]) + end.replace(b'?', b'h' + j) for i, j in enumerate(refer)
    )
    return begin + b'q\x000' + b''.join(nested) + b'h\x3f'


ENDLESS = {
    'tuples': NESTED,
    'lists': doubled(b']', b'(??e0'),
    'dicts': doubled(b'}', b'(K\x01?K\x02?u0'),
    'deep': b')' + b'\x85' * 30_000,
    'itself': b']q\x00h\x00a',
    'itself in a dict': b'}q\x00' + text('a') + b'h\x00s',
    'a huge number': b'\x8b' + struct.pack('<I', 1_000_000) + b'\x7f' * 1_000_000,
}

_NUMBERS = b''.join(COLLIDING)
_WIDE = items(b'K\x01' * 100_000) + b'q\x00'
_TUPLE = call('builtins.tuple', b'h\x00')
_MEGABYTE = blob(bytes(1 << 20)) + b'q\x00'
_VIEW = call('numpy.core.numeric._frombuffer', b'h\x00', dtype('f4'), tup(number(1 << 18)))
_PAIRS = b'}(' + b'N'.join(COLLIDING[:9000]) + b'Nuq\x00'
#: Keys of one hash, keys that cost much to hash, and calls that copy much again and again.
SLOW = {
    'dict': whole(b'}(' + b'N'.join(COLLIDING) + b'Nu'),
    'set': whole(b'\x8f(' + _NUMBERS + b'\x90'),
    'frozenset': whole(b'(' + _NUMBERS + b'\x91'),
    'set of': whole(call('builtins.set', items(_NUMBERS))),
    'wide': whole(_WIDE + _TUPLE + b'q\x01}((' + b'h\x01' * 100_000 + b'tNu'),
    'copies': whole(_WIDE + items(_TUPLE * 50_000)),
    'arrays': whole(items(_MEGABYTE + _VIEW * 5_000)),
    'pairs': whole(_PAIRS + items(call('collections.OrderedDict', b'h\x00') * 2_000)),
}
