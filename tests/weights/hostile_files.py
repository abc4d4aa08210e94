"""Files that a checkpoint reader must survive: they run code, lie about sizes, or are damaged.

Written from what the formats allow, apart from the reader.
"""

import io
import os
import pickle
import pickletools
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer


class Hostile:
    """Unpickled, it makes a folder: the sign that code was run."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class HostileState(OrderedDict):
    """A dict that is harmless, with an attribute that is not."""


def hiding_places(mark):
    """Objects with a :class:`Hostile` somewhere inside."""
    history = HistoryBuffer()
    history.update(1.0)
    history.note = Hostile(mark)
    ordered = OrderedDict(a=torch.ones(1))
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
        'parameter': torch.nn.Parameter(torch.ones(1)).requires_grad_(False),
    } | {'parameter': {'p': Hostile(mark)}}


def damaged(whole, count, seed, keep=()):
    """Truncated and bit-flipped copies of a file; ``keep`` are the (start, end) never flipped."""
    rng = random.Random(seed)
    for i in range(count):
        if i % 3 == 0:
            yield f'cut{i}', whole[: rng.randrange(len(whole))]
            continue
        changed = bytearray(whole)
        for _ in range(1 if i % 3 == 1 else 4):
            at = rng.randrange(len(whole))
            while any(start <= at < end for start, end in keep):
                at = rng.randrange(len(whole))
            changed[at] ^= 1 << rng.randrange(8)
        yield f'flip{i}', bytes(changed)


def array_places(data):
    """Where the numbers of arrays lie in a pickle."""
    for operation, argument, at in pickletools.genops(data):
        if operation.name in ('BINBYTES', 'SHORT_BINBYTES'):
            yield at, at + len(argument) + 5


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


def call(function, *arguments):
    return name(function) + b'(' + b''.join(arguments) + b'tR'


def array(shape, data, code='f4', order=b'\x89'):
    """A numpy array that says ``shape`` and has ``data``."""
    empty = (name('numpy.ndarray'), b'K\x00\x85', b'C\x01b')
    made = call('numpy.core.multiarray._reconstruct', *empty)
    dtype = (
        call('numpy.dtype', text(code), b'\x89', b'\x88')
        + b'(K\x03'
        + text('<')
        + b'NNN'
        + (b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb')
    )
    sizes = b'(' + b''.join(map(number, shape)) + b't'
    return (
        made
        + b'(K\x01'
        + sizes
        + dtype
        + order
        + b'B'
        + struct.pack('<I', len(data))
        + data
        + (b'tb')
    )


def tensor(key, count, size, stride, offset=0, kind='torch.FloatStorage', view=b''):
    storage = b'(' + text('storage') + name(kind) + text(key) + text('cpu') + number(count) + view
    sizes = [b'(' + b''.join(map(number, part)) + b't' for part in (size, stride)]
    return call(
        'torch._utils._rebuild_tensor_v2',
        storage + b'tQ',
        number(offset),
        *sizes,
        b'\x89',
        call('collections.OrderedDict'),
    )


def entry(key, value):
    return PROTO + b'}' + text(key) + value + b's' + STOP


def lying_pickles():
    """Bare pickles, as of Paddle: a few bytes that ask for much."""
    ones = np.ones(4, np.float32).tobytes()
    big = struct.pack('<Q', 1 << 60)
    nested = b'K\x01' + b'2\x86' * 64
    yield 'shape', entry('w', array((1 << 40,), ones))
    yield 'shape_product', entry('w', array((1 << 31, 1 << 31, 4), ones))
    yield 'shape_negative', entry('w', array((-4,), ones))
    yield 'shape_text', entry('w', array((4,), ones).replace(number(4), text('4')))
    yield 'shape_zero', entry('w', array((0, 1 << 62), b''))
    yield 'dtype_object', entry('w', array((1,), ones, 'O8'))
    yield 'dtype_unknown', entry('w', array((1,), ones, 'q9'))
    yield 'dtype_void', entry('w', array((1,), ones, 'V99'))
    yield 'dtype_other', entry('w', array((4,), ones, 'i4'))
    yield 'unicode8', PROTO + b'\x8d' + big + b'x'
    yield 'bytes8', PROTO + b'\x8e' + big + b'x'
    yield 'bytearray8', PROTO + b'\x96' + big + b'x'
    yield 'unicode', PROTO + b'X\xff\xff\xff\xffx'
    yield 'bytes', PROTO + b'B\xff\xff\xff\xffx'
    yield 'long4', PROTO + b'\x8b\xff\xff\xff\x7fx'
    yield 'long4_negative', PROTO + b'\x8b\xff\xff\xff\xffx'
    yield 'bytearray_of', entry('w', call('builtins.bytearray', number(1 << 40)))
    yield 'encode', entry('w', call('_codecs.encode', text('x' * 1000), text('idna')))
    yield 'ones_text', PROTO + text('\U0001f40d' + 'x' * 3_000_000) + STOP
    yield 'ends_wide', PROTO + text('x' * 3_000_000 + '\U0001f40d') + STOP
    yield 'dicts', PROTO + b'}' * 1_000_000 + STOP
    yield 'sets', PROTO + b'\x8f' * 1_000_000 + STOP
    yield 'lists', PROTO + b'(' * 1_000_000 + b'l' * 1_000_000 + STOP
    yield 'marks', PROTO + b'(' * 1_000_000
    puts = b''.join(b'r' + struct.pack('<I', i) for i in range(300_000))
    yield 'memo', PROTO + b'N' + puts + STOP
    yield 'memo_gone', PROTO + b'j\xff\xff\xff\xff' + STOP
    yield 'deep', PROTO + b']' * 50_000 + b'a' * 49_999 + STOP
    yield 'deep_tuple', PROTO + b')' + b'\x85' * 500_000 + STOP
    yield 'itself', PROTO + b']q\x00h\x00a' + STOP
    yield 'itself_dict', PROTO + b'}q\x00' + text('a') + b'h\x00s' + STOP
    yield 'laughs', entry('w', nested)
    yield 'laughs_key', PROTO + b'}' + nested + b'Ns' + STOP
    yield 'laughs_set', PROTO + b'\x8f(' + nested + b'\x90' + STOP
    yield (
        'laughs_config',
        entry('w', call('mmengine.config.config.ConfigDict', b'}' + text('a') + nested + b's')),
    )
    yield (
        'colliding',
        PROTO
        + b'}('
        + b''.join(number(i * ((1 << 61) - 1)) + b'N' for i in range(1, 40_000))
        + b'u'
        + STOP,
    )
    yield 'odd_items', PROTO + b'}(NNNu' + STOP
    yield 'pop_all', PROTO + b'0' * 10 + STOP
    yield 'no_stop', PROTO + b'N' * 100
    yield 'long_name', PROTO + b'c' + b'a' * 100_000
    yield 'history', entry('h', name('mmengine.logging.history_buffer.HistoryBuffer') + b')\x81}b')
    yield 'function', entry('w', name('torch._utils._rebuild_tensor_v2'))
    yield 'known', entry('w', name('builtins.getattr'))
    yield 'getattr', entry('w', call('builtins.getattr', text('x'), text('__class__')))
    yield 'extension', PROTO + b'\x82\x01' + STOP
    yield 'instance', PROTO + b'(ios\nsystem\n.'
    yield 'ints', pickle.dumps(list(range(1000)), 2)


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


def lying_zips():
    """Zip files of torch.save that say more than they hold."""
    ones = np.ones(16, np.float32).tobytes()
    good = entry('w', tensor('0', 16, (4, 4), (4, 1)))
    records = [('0', ones)]
    yield 'storage', torch_zip(entry('w', tensor('0', 1 << 60, (4,), (1,))), records)
    yield (
        'storage_type',
        torch_zip(entry('w', tensor('0', 16, (4,), (1,), kind='torch.DoubleStorage')), records),
    )
    yield 'size', torch_zip(entry('w', tensor('0', 16, (1 << 40,), (1,))), records)
    yield 'expanded', torch_zip(entry('w', tensor('0', 16, (1 << 40,), (0,))), records)
    yield 'overlap', torch_zip(entry('w', tensor('0', 16, (4, 4), (0, 1))), records)
    yield 'offset', torch_zip(entry('w', tensor('0', 16, (4,), (1,), offset=13)), records)
    yield 'offset_negative', torch_zip(entry('w', tensor('0', 16, (4,), (1,), -1)), records)
    yield 'stride', torch_zip(entry('w', tensor('0', 16, (2,), (1 << 50,))), records)
    yield 'stride_negative', torch_zip(entry('w', tensor('0', 16, (2,), (-1,))), records)
    yield 'no_record', torch_zip(good)
    yield 'no_pickle', torch_zip(good, records).replace(b'data.pkl', b'dota.pkl')
    yield 'bomb', torch_zip(good, [('0', b'\0' * 20_000_000)], zipfile.ZIP_DEFLATED)
    yield 'bomb_pickle', torch_zip(PROTO + b'N' * 20_000_000, [], zipfile.ZIP_DEFLATED)
    yield 'twice', torch_zip(good, records * 2)
    whole = torch_zip(good, records)
    end = whole.rfind(b'PK\x05\x06')
    at = whole.rfind(b'PK\x01\x02')
    yield 'wide', whole[: at + 20] + b'\xff' * 8 + whole[at + 28 :]
    yield 'wide_start', whole[: at + 42] + b'\xff' * 4 + whole[at + 46 :]
    yield 'many', whole[: end + 8] + b'\xff' * 4 + whole[end + 12 :]
    yield 'far', whole[: end + 16] + b'\xff' * 4 + whole[end + 20 :]
    locator = b'PK\x06\x07' + struct.pack('<IQI', 0, 1 << 63, 1)
    yield 'far64', whole[:end] + locator + whole[end:]
    # every record in the place of the same bytes
    many = torch_zip(
        PROTO
        + b']('
        + b''.join(tensor(str(i), 1_000_000, (4,), (1,)) for i in range(60))
        + b'e'
        + STOP,
        [('0', b'\0' * 4_000_000)],
    )
    yield 'overlapping', _point_all_at_first(many, 60)
    yield 'script', torch_zip(good, records, extra=('constants.pkl',))


def _point_all_at_first(whole, count):
    at = whole.rfind(b'PK\x01\x02')
    end = whole.rfind(b'PK\x05\x06')
    last = whole[at:end]
    entries = whole[whole.find(b'PK\x01\x02') : end] + b''.join(
        last[:28] + struct.pack('<H', len(f'a/data/{i}')) + last[30:46] + f'a/data/{i}'.encode()
        for i in range(1, count)
    )
    start = whole.find(b'PK\x01\x02')
    total = struct.unpack('<H', whole[end + 10 : end + 12])[0] + count - 1
    tail = struct.pack('<HHII', total, total, len(entries), start)
    return whole[:start] + entries + whole[end : end + 8] + tail + b'\0\0'


def legacy(objects, keys, data):
    """A file of torch.save before 1.6: pickles one after another, then the numbers."""
    system = dict(protocol_version=1001, little_endian=True, type_sizes={})
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    return b''.join([*parts, objects, pickle.dumps(keys, 2), data])


def lying_legacy_files():
    """Legacy files that say more than they hold."""
    ones = struct.pack('<Q', 16) + np.ones(16, np.float32).tobytes()

    def one(count=16, size=(16,), stride=(1,), keys=('0',), data=ones, **kwargs):
        kwargs.setdefault('view', b'N')
        return legacy(entry('w', tensor('0', count, size, stride, **kwargs)), list(keys), data)

    yield 'storage', one(count=1 << 60)
    yield 'storage_2g', one(count=1 << 29)
    yield 'size', one(size=(1 << 40,))
    yield 'expanded', one(size=(1 << 40,), stride=(0,))
    yield 'no_keys', one(keys=())
    yield 'other_keys', one(keys=('1',))
    yield 'keys_twice', one(keys=('0', '0'))
    yield 'no_data', one(data=b'')
    yield 'short_data', one(data=ones[:-1])
    yield 'data_size', one(data=struct.pack('<Q', 1 << 60) + ones[8:])
    yield 'view', one(view=b'(' + text('v') + number(0) + number(1 << 60) + b't')
    many = b''.join(tensor(str(i), 1_000_000, (4,), (1,), view=b'N') for i in range(60))
    keys = [str(i) for i in range(60)]
    yield 'sum', legacy(PROTO + b'](' + many + b'e' + STOP, keys, b'\0' * 5_000_000)


def lying_safetensors():
    """Files with a header that is wrong."""

    def one(header, data=b'\0' * 64, length=None):
        return struct.pack('<Q', len(header) if length is None else length) + header + data

    def tensor_of(dtype='"F32"', shape='[4,4]', offsets='[0,64]', more=''):
        entry = f'"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}'
        return f'{{"w":{{{entry}}}}}'.encode()

    yield 'length', one(tensor_of(), length=99_000_000)
    yield 'length_huge', one(tensor_of(), length=1 << 62)
    yield 'no_json', one(b'{"w":')
    yield 'list', one(b'{"w":[]}')
    yield 'deep', one(b'{"w":' + b'[' * 100_000)
    yield 'wide', one(b'{' + b'"":{},' * 1_000_000)
    yield 'shape', one(tensor_of(shape='[1099511627776]'))
    yield 'shape_negative', one(tensor_of(shape='[-4,-4]'))
    yield 'shape_text', one(tensor_of(shape='["4",4]'))
    yield 'shape_float', one(tensor_of(shape='[4.0,4]'))
    yield 'shape_digits', one(tensor_of(shape=f'[{"9" * 5000}]'))
    yield 'offsets', one(tensor_of(offsets='[0,1099511627776]'))
    yield 'offsets_back', one(tensor_of(offsets='[64,0]'))
    yield 'offsets_gap', one(tensor_of(offsets='[1,65]'))
    yield 'dtype', one(tensor_of(dtype='"X9"'))
    yield 'dtype_list', one(tensor_of(dtype='["F32"]'))
    yield 'more', one(tensor_of(more=',"x":1'))
    yield 'rest', one(tensor_of(), data=b'\0' * 65)


def endless(value):
    """Pickles of a few bytes with ``value`` (operations) wherever something could spell it."""
    yield 'dtype', entry('w', call('numpy.dtype', value))
    yield 'shape', entry('w', call('torch.Size', b'(' + value + b't'))
    yield 'name', entry('w', call('builtins.getattr', name('torch.Tensor'), value))
    yield 'codec', entry('w', call('_codecs.encode', text('x'), value))
    yield 'size', entry('w', call('collections.deque', b')', value))
    yield 'time', entry('w', call('datetime.datetime', value))
    yield 'path', entry('w', call('pathlib.PosixPath', value))
    yield 'layout', entry('w', call('torch.serialization._get_layout', value))
    yield 'type', entry('w', call('builtins.type', value))
    yield 'factory', entry('w', call('collections.defaultdict', value))
    yield 'function', PROTO + value + b')R' + STOP
    yield 'persistent', PROTO + value + b'Q' + STOP
    yield 'state', PROTO + value + b'}b' + STOP
    yield 'items', PROTO + value + b'NNs' + STOP
    yield 'key', PROTO + b'}' + value + b'Ns' + STOP
    yield 'member', PROTO + b'\x8f(' + value + b'\x90' + STOP
    yield 'frozen', PROTO + b'(' + value + b'\x91' + STOP
    yield 'set of', PROTO + call('builtins.set', b'](' + value + b'e') + STOP
    yield 'pairs', PROTO + call('collections.OrderedDict', b'](' + value + b'N\x86e') + STOP
    yield 'counted', PROTO + call('collections.Counter', b'}' + value + b'K\x01s') + STOP
    made = name('argparse.Namespace') + b')\x81}' + text('a')
    yield 'arguments', PROTO + made + value + b'sb' + STOP
    yield (
        'metadata',
        PROTO + call('collections.OrderedDict') + b'}' + text('_metadata') + value + (b'sb' + STOP),
    )
    yield 'alone', PROTO + value + STOP


ENDLESS = {
    'tuples': b'K\x01' + b'2\x86' * 64,
    'lists': b']q\x000'
    + b''.join(
        b']q' + bytes([i]) + b'(h' + bytes([i - 1]) + b'h' + bytes([i - 1]) + b'e0'
        for i in range(1, 64)
    )
    + b'h\x3f',
    'dicts': b'}q\x000'
    + b''.join(
        b'}q' + bytes([i]) + b'(K\x01h' + bytes([i - 1]) + b'K\x02h' + bytes([i - 1]) + b'u0'
        for i in range(1, 64)
    )
    + b'h\x3f',
    'filled late': b''.join(b']q' + bytes([i]) + b'0' for i in range(64))
    + b''.join(
        b'h' + bytes([i]) + b'(h' + bytes([i + 1]) + b'h' + bytes([i + 1]) + b'e0'
        for i in range(63)
    )
    + b'h\x00',
    'deep': b')' + b'\x85' * 30_000,
    'itself': b']q\x00h\x00a',
    'a huge number': b'\x8b' + struct.pack('<I', 1_000_000) + b'\x7f' * 1_000_000,
}


def colliding_keys():
    """Keys of one hash, keys that cost much to hash, and calls that copy much again and again."""
    step = (1 << 61) - 1
    each = [number(i * step) for i in range(1, 60_000)]
    yield 'dict', PROTO + b'}(' + b'N'.join(each) + b'Nu' + STOP
    numbers = b''.join(each)
    yield 'set', PROTO + b'\x8f(' + numbers + b'\x90' + STOP
    yield 'frozenset', PROTO + b'(' + numbers + b'\x91' + STOP
    yield 'set of', PROTO + call('builtins.set', b'](' + numbers + b'e') + STOP
    wide = b'](' + b'K\x01' * 100_000 + b'e'
    yield (
        'wide',
        PROTO
        + wide
        + b'q\x00'
        + call('builtins.tuple', b'h\x00')
        + b'q\x01'
        + (b'}(' + b'(' + b'h\x01' * 100_000 + b'tN' + b'u' + STOP),
    )
    calls = call('builtins.tuple', b'h\x00')
    yield 'copies', PROTO + wide + b'q\x000](' + calls * 50_000 + b'e' + STOP
    big = b'B' + struct.pack('<I', 1 << 20) + bytes(1 << 20) + b'q\x00'
    dtype = call('numpy.dtype', text('f4'))
    shape = b'(' + number(1 << 18) + b't'
    view = call('numpy.core.numeric._frombuffer', b'h\x00', dtype, shape)
    yield 'arrays', PROTO + b'](' + big + view * 5_000 + b'e' + STOP
    few = b'](' + b''.join(each[:9_000]) + b'e'
    for kind in ('builtins.set', 'builtins.frozenset'):
        again = b'](' + call(kind, b'h\x00') * 2_000 + b'e'
        yield f'{kind} again', PROTO + few + b'q\x00' + again + STOP
    pairs = b'}(' + b'N'.join(each[:9_000]) + b'Nu'
    for kind in ('collections.OrderedDict', 'collections.Counter'):
        again = b'](' + call(kind, b'h\x00') * 2_000 + b'e'
        yield f'{kind} again', PROTO + pairs + b'q\x00' + again + STOP
    names = b'}(' + b''.join(text(f'a{i}') + b'N' for i in range(50_000)) + b'uq\x000'
    made = name('argparse.Namespace') + b')\x81'
    yield 'states', PROTO + names + made + b'h\x00b' * 50_000 + STOP
    metadata = names + b'}' + text('_metadata') + b'h\x00sq\x010' + call('collections.OrderedDict')
    yield 'metadata', PROTO + metadata + b'h\x01b' * 50_000 + STOP
