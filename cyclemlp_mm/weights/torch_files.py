"""Files that ``torch.save`` wrote: zip files, or (before 1.6) one pickle after another."""

import io
import zipfile
from typing import BinaryIO

import torch

from .limits import DamagedFile, RefusedContent, shorten
from .pickles import Named, SafeUnpickler, Storage

#: The first pickle of a legacy file.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ENCRYPTED = 1


def read_zip(file: BinaryIO, size: int, tensors: bool = True) -> object:
    """What a zip file of ``torch.save`` holds, tensors on the CPU, every checksum verified.

    Without ``tensors`` their numbers are not read, but 0.

    Raises:
        DamagedFile: It is truncated or changed.
        RefusedContent: It holds an object of a type that is not allowed.
    """
    with zipfile.ZipFile(file) as archive:
        records = _check_records(archive.infolist(), size)

        def read(name: str) -> bytearray:
            if name not in records:
                raise DamagedFile(f'it has no record {shorten(name)}')
            # zipfile verifies the checksum; torch.save writes 0 where it is told to write none.
            records[name].CRC = records[name].CRC or None
            try:
                return bytearray(archive.read(records[name]))
            except zipfile.BadZipFile as error:
                raise DamagedFile(f'its record {shorten(name)} is damaged: {error}') from error

        pickles = [name for name in records if name.endswith('/data.pkl') and name.count('/') == 1]
        if len(pickles) != 1:
            raise DamagedFile('it is a zip file, but not of torch.save: it holds no data.pkl')
        root = pickles[0].removesuffix('data.pkl')
        if f'{root}byteorder' in records and read(f'{root}byteorder') != b'little':
            raise RefusedContent('it was written on a big-endian machine')
        storages: dict[str, Storage] = {}

        def storage(dtype: torch.dtype, key: str, count: int) -> Storage:
            if key not in storages:
                name = f'{root}data/{key}'
                skipped = not tensors and name in records
                # Its pages are taken from memory only when they are written to.
                content = bytearray(records[name].file_size) if skipped else read(name)
                storages[key] = Storage(content, dtype)
            return storages[key].of(dtype, count)

        pickled = read(pickles[0])
        return SafeUnpickler(io.BytesIO(pickled), len(pickled), storage).load()


class _LegacyUnpickler(SafeUnpickler):
    def find_class(self, module: str, name: str) -> object:
        """Without sparse tensors: they are checked when made, before their numbers are there."""
        return Named(f'{module}.{name}') if 'sparse' in name else super().find_class(module, name)


def read_legacy(file: BinaryIO, size: int) -> object:
    """What a legacy file of ``torch.save`` holds, tensors on the CPU.

    Args:
        file (BinaryIO): Just behind the magic number.
        size (int): Bytes of the file.

    Raises:
        DamagedFile: It is truncated or changed.
        RefusedContent: It holds an object of a type that is not allowed.
    """
    if SafeUnpickler(file, size).load() != _LEGACY_PROTOCOL:
        raise DamagedFile('it was written by an unknown version of torch')
    system = SafeUnpickler(file, size).load()
    if isinstance(system, dict) and system.get('little_endian') is False:
        raise RefusedContent('it was written on a big-endian machine')
    storages: dict[str, Storage] = {}
    left = size

    def storage(dtype: torch.dtype, key: str, count: int) -> Storage:
        nonlocal left
        # Its bytes come after the pickle: here they are only allocated.
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise DamagedFile(f'a tensor declares {count} numbers of {dtype}: it ends early')
            storages[key] = Storage(bytearray(count * dtype.itemsize), dtype)
        return storages[key].of(dtype, count)

    content = _LegacyUnpickler(file, size, storage).load()
    keys = SafeUnpickler(file, size).load()
    if (
        not isinstance(keys, list)
        or any(type(key) is not str for key in keys)
        or (sorted(keys) != sorted(storages))
    ):
        raise DamagedFile('the list of its tensors does not fit its tensors')
    for key in keys:
        content_of, dtype = storages[key].content, storages[key].dtype
        if int.from_bytes(file.read(8), 'little') * dtype.itemsize != len(content_of):
            raise DamagedFile('a tensor has another size than it declares')
        if file.readinto(content_of) != len(content_of):
            raise DamagedFile('it ends early')
    return content


def _check_records(listed: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Records by name, if any reader would find the same ones."""
    records = {record.filename: record for record in listed}
    # First, since a program's code is compressed.
    if any(name.endswith('/constants.pkl') and name.count('/') == 1 for name in records):
        raise RefusedContent(
            'it is a TorchScript program, not weights: save the state_dict() of the module'
        )
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
