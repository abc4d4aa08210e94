"""The records of a zip file that ``torch.save`` wrote.

Stricter than a zip library, which has to take every zip: records are stored, not compressed, lie
inside the file and have one name each; so a small file cannot unfold into a large one, and no two
readers can disagree on what it holds.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from .limits import Budget, DamagedFile, RefusedContent, shorten

_END, _END64, _LOCATOR64 = b'PK\x05\x06', b'PK\x06\x06', b'PK\x06\x07'
_ENTRY, _LOCAL = b'PK\x01\x02', b'PK\x03\x04'
_END_SIZE, _LOCATOR_SIZE, _END64_SIZE, _ENTRY_SIZE, _LOCAL_SIZE = 22, 20, 56, 46, 30
_IN_ZIP64 = 0xFFFFFFFF
_PYTHON_OBJECTS = 600  # bytes that an entry takes here, roughly
_ENCRYPTED = 1


@dataclass(frozen=True)
class _Record:
    offset: int  # of its local header
    size: int
    checksum: int


class ZipRecords:
    """Names and contents of the records.

    Args:
        file (BinaryIO): The zip file.
        size (int): Its bytes.
        budget (Budget): What the directory and the records are paid from.

    Attributes:
        packed (str | None): The first record that is compressed or encrypted; it cannot be read.

    Raises:
        DamagedFile: No zip file, or a truncated or changed one.
        RefusedContent: Two records of one name.
    """

    def __init__(self, file: BinaryIO, size: int, budget: Budget) -> None:
        self._file, self._size, self._budget = file, size, budget
        self.packed: str | None = None
        self._records = self._read_directory()

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __iter__(self):
        return iter(self._records)

    def size(self, name: str) -> int:
        """Bytes of a record."""
        return self._find(name).size

    def read(self, name: str) -> bytearray:
        """A record's content, its checksum verified."""
        record = self._find(name)
        header = self._bytes_at(record.offset, _LOCAL_SIZE)
        if header[:4] != _LOCAL:
            raise DamagedFile(f'its record {shorten(name)} is not where its directory says')
        name_size, extra_size = struct.unpack('<HH', header[26:30])
        start = record.offset + _LOCAL_SIZE + name_size + extra_size
        if start + record.size > self._size:
            raise DamagedFile('it ends early')
        self._budget.spend(record.size)
        content = bytearray(record.size)
        self._file.seek(start)
        if self._file.readinto(content) != record.size:
            raise DamagedFile('it ends early')
        # torch.save can be told to write no checksums; it writes 0 then.
        if record.checksum not in (0, zlib.crc32(content)):
            raise DamagedFile(f'the checksum of its record {shorten(name)} is wrong')
        return content

    def _find(self, name: str) -> _Record:
        if name not in self._records:
            raise DamagedFile(f'it has no record {shorten(name)}')
        return self._records[name]

    def _bytes_at(self, offset: int, count: int) -> bytes:
        if offset < 0 or count < 0 or offset + count > self._size:
            raise DamagedFile('it ends early')
        self._file.seek(offset)
        return self._file.read(count)

    def _read_directory(self) -> 'dict[str, _Record]':
        offset, size, count = self._find_directory()
        self._budget.spend(size + count * _PYTHON_OBJECTS)
        directory = self._bytes_at(offset, size)
        records, at = {}, 0
        for _ in range(count):
            entry = directory[at:at + _ENTRY_SIZE]
            if len(entry) != _ENTRY_SIZE or entry[:4] != _ENTRY:
                raise DamagedFile('its zip directory is damaged')
            flags, method = struct.unpack('<HH', entry[8:12])
            checksum, packed, unpacked = struct.unpack('<III', entry[16:28])
            name_size, extra_size, comment_size = struct.unpack('<HHH', entry[28:34])
            start = struct.unpack('<I', entry[42:46])[0]
            at += _ENTRY_SIZE
            name = directory[at:at + name_size].decode('utf-8', 'replace')
            extra = directory[at + name_size:at + name_size + extra_size]
            at += name_size + extra_size + comment_size
            if method or flags & _ENCRYPTED:
                self.packed = self.packed or name
                continue
            unpacked, packed, start = _from_zip64(extra, unpacked, packed, start)
            if packed != unpacked or start + _LOCAL_SIZE + packed > self._size:
                raise DamagedFile(f'its record {shorten(name)} lies beyond its end')
            if name in records:
                raise RefusedContent(f'it holds two records named {shorten(name)}')
            records[name] = _Record(start, unpacked, checksum)
        return records

    def _find_directory(self) -> 'tuple[int, int, int]':
        """Offset, bytes and number of entries of the directory."""
        tail_size = min(self._size, _END_SIZE + 0xFFFF)  # a comment may follow
        tail = self._bytes_at(self._size - tail_size, tail_size)
        at = tail.rfind(_END)
        if at < 0 or len(tail) - at < _END_SIZE:
            raise DamagedFile('it is a zip file without an end')
        count, size, offset = struct.unpack('<HII', tail[at + 10:at + 20])
        locator_at = self._size - tail_size + at - _LOCATOR_SIZE
        if locator_at >= 0:
            locator = self._bytes_at(locator_at, _LOCATOR_SIZE)
            if locator[:4] == _LOCATOR64:
                end64 = self._bytes_at(struct.unpack('<Q', locator[8:16])[0], _END64_SIZE)
                if end64[:4] != _END64:
                    raise DamagedFile('its zip directory is damaged')
                count, size, offset = struct.unpack('<QQQ', end64[32:56])
        if offset + size > self._size or count * _ENTRY_SIZE > size:
            raise DamagedFile('its zip directory is damaged')
        return offset, size, count


def _from_zip64(extra: bytes, *fields: int) -> 'list[int]':
    """``fields``, those that did not fit 32 bits read from the zip64 field of ``extra``."""
    wanted = [i for i, value in enumerate(fields) if value == _IN_ZIP64]
    values, at = list(fields), 0
    while wanted and at + 4 <= len(extra):
        kind, size = struct.unpack('<HH', extra[at:at + 4])
        if kind == 1:
            if size < 8 * len(wanted) or at + 4 + size > len(extra):
                break
            wide = struct.unpack_from(f'<{len(wanted)}Q', extra, at + 4)
            for i, value in zip(wanted, wide):
                values[i] = value
            return values
        at += 4 + size
    if wanted:
        raise DamagedFile('its zip directory is damaged')
    return values
