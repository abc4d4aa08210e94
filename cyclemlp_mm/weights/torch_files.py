"""Files that ``torch.save`` wrote: zip files, or (before 1.6) one pickle after another."""

from __future__ import annotations

import io
import zipfile
from typing import Any, BinaryIO

import torch

from cyclemlp_mm.errors import shorten

from .allowed_types import DamagedFile, RefusedContent
from .pickles import PickleReader, Storage

#: The first pickle of a legacy file.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ENCRYPTED = 1
_BIG_ENDIAN = 'it was written on a big-endian machine'


def read_zip(file: BinaryIO, size: int, tensors: bool = True) -> Any:
    """What a zip file of ``torch.save`` holds, tensors on the CPU, every checksum verified.

    Without ``tensors`` their numbers are not read, but 0.
    """
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
