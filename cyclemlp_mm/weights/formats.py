"""The formats of checkpoint files: torch's, Paddle's, and safetensors; in and, for the last, out.

- torch: a zip file, or (before 1.6) one pickle after another.
- Paddle's ``.pdparams``: a pickled dict of numpy arrays under the parameters' names, and one entry
  that maps them to Paddle's inner names. Linear weights are (in, out), the other way round than
  PyTorch's; which ones are Linear only the family knows, see :attr:`PublishedFormat.from_paddle`.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from cyclemlp_mm.errors import UserError, shorten

from .allowed_types import DamagedFile, RefusedContent
from .pickles import PickleReader, Storage

#: The first pickle of a legacy file.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ENCRYPTED = 1
_BIG_ENDIAN = 'it was written on a big-endian machine'
#: Paddle's table of inner names, kept in the same dict as the parameters.
INNER_NAMES = 'StructuredToParameterName@@'
#: How protocol 2 keeps arrays over 1 GB: cut into several.
_CUT_ARRAYS = 'UnpackBigParamInfor@@'
#: Our key in a file's metadata: class names and colours, as JSON.
DATASET_META = 'dataset_meta'
_METADATA = '__metadata__'
_LARGEST_HEADER = 100_000_000  # the format's own limit


def read_zip(file: BinaryIO, size: int, tensors: bool = True) -> Any:
    """What a zip file of ``torch.save`` holds; without ``tensors`` their numbers are 0."""
    with zipfile.ZipFile(file) as archive:
        records = _check_records(archive.infolist(), size)
        pickles = [name for name in records if name.endswith('/data.pkl') and name.count('/') == 1]
        if len(pickles) != 1:
            raise DamagedFile('it is a zip file, but not of torch.save: it holds no data.pkl')
        root = pickles[0].removesuffix('data.pkl')

        def read(name: str, really: bool = True) -> bytearray:
            record = records.get(root + name)
            if record is None:
                raise DamagedFile(f'it has no record {shorten(root + name)}')
            # zipfile verifies the checksum; 0 is a file written without.
            record.CRC = record.CRC or None  # type: ignore[assignment]
            # Pages of zeros are taken from memory only when they are written to.
            return bytearray(archive.read(record) if really else record.file_size)

        if f'{root}byteorder' in records and read('byteorder') != b'little':
            raise RefusedContent(_BIG_ENDIAN)
        made: dict[str, torch.UntypedStorage] = {}

        def data_of(storage: Storage) -> torch.UntypedStorage:
            if storage.key not in made:
                made[storage.key] = _untyped(read(f'data/{storage.key}', tensors))
            return made[storage.key]

        return PickleReader(io.BytesIO(read('data.pkl'))).build(data_of)


def read_legacy(file: io.BytesIO) -> Any:
    """What follows the magic number in a legacy file of ``torch.save``, tensors on the CPU."""
    if PickleReader(file).build() != _LEGACY_PROTOCOL:
        raise DamagedFile('it was written by an unknown version of torch')
    system = PickleReader(file).build()
    if isinstance(system, dict) and system.get('little_endian') is False:
        raise RefusedContent(_BIG_ENDIAN)
    content = PickleReader(file)
    keys = PickleReader(file).build()
    is_list = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not is_list or sorted(keys) != sorted(content.storages):
        raise DamagedFile('the list of its tensors does not fit its tensors')
    made = {}
    for key in keys:
        size = int.from_bytes(file.read(8), 'little') * content.storages[key].dtype.itemsize
        data = bytearray(file.read(size))
        if len(data) != size:
            raise DamagedFile('it ends early')
        made[key] = _untyped(data)
    return content.build(lambda storage: made[storage.key])


def _untyped(content: bytearray) -> torch.UntypedStorage:
    # frombuffer refuses an empty buffer.
    flat = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0)
    return flat.untyped_storage()


def _check_records(listed: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Records by name, if any reader would find the same ones."""
    records = {record.filename: record for record in listed}
    # First, since a program's code is compressed.
    if any(name.endswith('/constants.pkl') and name.count('/') == 1 for name in records):
        raise RefusedContent('it is a TorchScript program: save the state_dict() of the module')
    for record in listed:
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & _ENCRYPTED:
            raise RefusedContent(
                f'its record {shorten(record.filename)} is compressed or encrypted, which '
                'torch.save never does: unpack it, and save it with torch.save'
            )
    if len(records) != len(listed):
        raise RefusedContent('it holds two records of one name')
    if not listed or min(record.header_offset for record in listed):
        raise DamagedFile('bytes precede its first record')
    if sum(record.file_size for record in listed) > size:
        raise DamagedFile(f'its records are larger than its {size} bytes')
    return records


class PaddleStateDict(dict):
    """Names to tensors as Paddle has them: Linear weights are (in, out)."""


def has_arrays(content: object) -> bool:
    """Whether an unpickled object is what Paddle saves, or Detectron2: that under 'model'."""
    return _is_paddle(content) or (isinstance(content, dict) and _is_paddle(content.get('model')))


def _is_paddle(content: object) -> bool:
    return isinstance(content, dict) and (
        INNER_NAMES in content or any(_array(value) is not None for value in content.values())
    )


def to_tensors(content: Any) -> Any:
    """An unpickled file with tensors for arrays; anything else in it stays as it is."""
    if not has_arrays(content):
        return content
    if not _is_paddle(content):
        return {**content, 'model': dict(to_tensors(content['model']))}
    content = {name: value for name, value in content.items() if name != INNER_NAMES}
    for name, cut in (content.pop(_CUT_ARRAYS, None) or {}).items():
        parts = [content.pop(part) for part in cut['slices']]
        content[name] = np.concatenate(parts).reshape(cut['OriginShape'])
    tensors: dict[int, Tensor] = {}  # an array under several names stays one
    for name, value in content.items():
        array = _array(value)
        if array is not None:
            if id(array) not in tensors:
                tensors[id(array)] = _tensor(name, array)
            content[name] = tensors[id(array)]
    return PaddleStateDict(content)


def _array(value: object) -> np.ndarray | None:
    if isinstance(value, tuple) and len(value) == 2:  # a tensor is saved with its inner name
        value = value[1]
    return value if isinstance(value, np.ndarray) else None


def _tensor(name: object, array: np.ndarray) -> Tensor:
    array = array.astype(array.dtype.newbyteorder('='), copy=False)
    try:
        if array.dtype == np.uint16:  # how Paddle saves bfloat16, which numpy does not have
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    except TypeError as error:
        text = f'its entry {shorten(name)} is an array of {array.dtype}, which no weight is'
        raise DamagedFile(text) from error


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``head`` (9 bytes) is of this format."""
    # A length that is too large still makes it one: a truncated one, which is worth saying.
    return head[8:9] == b'{' and _header_size(head) <= max(size, _LARGEST_HEADER)


def _header_size(content: bytes) -> int:
    return int.from_bytes(content[:8], 'little')


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:  # a backbone does not need it
        raise UserError('safetensors files need `pip install safetensors`') from error
    return safetensors


def read_safetensors(content: bytes) -> dict[str, object]:
    """Names to tensors, on the CPU; under ``state_dict`` where we wrote class names with them."""
    library = _library()
    try:
        state_dict = library.torch.load(content)
        metadata = json.loads(content[8 : 8 + _header_size(content)]).get(_METADATA) or {}
        if DATASET_META in metadata:
            meta = {DATASET_META: json.loads(metadata[DATASET_META])}
            return {'state_dict': state_dict, 'meta': meta}
    except library.SafetensorError as error:
        raise DamagedFile(f'the safetensors library reports: {error}') from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile('its metadata are not JSON') from error
    return state_dict


def to_safetensors(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Names, tensors and metadata as the content of a file: the same each time."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state_dict.items()}
    try:
        content = _library().torch.save(tensors)
    except KeyError as error:
        raise DamagedFile(f'a tensor is of {error}, which safetensors does not have') from error
    # The library (0.8) writes several metadata in an order that differs from run to run.
    size = _header_size(content)
    header = {_METADATA: dict(metadata), **json.loads(content[8 : 8 + size])}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, 'little') + text + content[8 + size :]
