"""Names that differ only in how they are written: the usual causes of 'no such file'."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from cyclemlp_mm.errors import UserError

#: Each cause with what it changes in a name; all of them are undone to compare two names.
_CAUSES = {
    'Unicode form: accents as one character (NFC) or as two (NFD)': lambda name: (
        unicodedata.normalize('NFC', name)
    ),
    'backslashes': lambda name: name.replace('\\', '/'),
    'a byte-order mark or spaces': lambda name: name.strip('\ufeff \t\r\n'),
    'URL encoding (%20)': unquote,
    "'./' in front": os.path.normpath,
    'capital letters': str.lower,
}


def say_spelling(names: Iterable[str], there: Iterable[str]) -> str:
    """Why names are missing, if they are there in another spelling; else an empty text.

    Args:
        names (Iterable[str]): That were not found.
        there (Iterable[str]): Names that are there.
    """
    by_key = {_key(name): name for name in there}
    pairs = [(name, by_key[_key(name)]) for name in names if _key(name) in by_key]
    if not pairs:
        return ''
    name, other = pairs[0]
    causes = [why for why, undo in _CAUSES.items() if undo(name) != name or undo(other) != other]
    return (
        f'{len(pairs)} of them are there in another spelling ({"; ".join(causes)}), '
        f'e.g. {name!a} is {other!a}'
    )


def files_in(folder: Path) -> list[str]:
    """All files in a folder, relative to it, with slashes."""
    return [p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()]


def is_no_class(folder: str) -> bool:
    """Whether the name of a folder is one that a system or a tool gives, not a class."""
    return folder.startswith('.') or folder == '__MACOSX'


def read_lines(path: Path) -> list[str]:
    """Lines of a text file as Windows, macOS or Linux write them.

    UTF-8 with or without a byte-order mark, and UTF-16 with one.

    Raises:
        UserError: It cannot be opened, is not a regular file, or has another encoding.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f'{path} is not a regular file')
        content = path.read_bytes()
        is_utf16 = content[:2] in (b'\xff\xfe', b'\xfe\xff')
        text = content.decode('utf-16' if is_utf16 else 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(
            f'{path} is not in UTF-8 (byte {error.start} is 0x{content[error.start]:02x}): save it '
            'as UTF-8'
        ) from error
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error})') from error
    if '\0' in text:
        raise UserError(
            f'{path} is not in UTF-8 (it holds NULs, as UTF-16 and UTF-32 do): save it as UTF-8'
        )
    return text.splitlines()


def read_names(path: Path) -> list[str]:
    """Names in a text file, one a line, without empty lines; raises as :func:`read_lines`."""
    return [name for line in read_lines(path) if (name := line.strip())]


def check_list_encoding(path: Path) -> None:
    """Refuse a list that a toolbox is to read and would read wrongly.

    Raises:
        UserError: It begins with a byte-order mark, or :func:`read_lines` cannot read it.
    """
    read_lines(path)
    with path.open('rb') as file:
        head = file.read(3)
    if head == b'\xef\xbb\xbf' or head[:2] in (b'\xff\xfe', b'\xfe\xff'):
        raise UserError(
            f'{path} begins with a byte-order mark, which would become a part of its first name: '
            'save it as UTF-8 without BOM'
        )


def _key(name: str) -> str:
    for undo in _CAUSES.values():
        name = undo(name)
    return name
