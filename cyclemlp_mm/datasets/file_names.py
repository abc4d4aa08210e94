"""Names that differ only in how they are written: the usual causes of 'no such file'."""

import os
import unicodedata
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from urllib.parse import unquote

from cyclemlp_mm.errors import UserError

#: Each cause with what it changes in a name; all of them are undone to compare two names.
_CAUSES = {
    'accents of one character (NFC) or two (NFD)': lambda name: unicodedata.normalize('NFC', name),
    'backslashes': lambda name: name.replace('\\', '/'),
    'a byte-order mark or spaces': lambda name: name.strip('\ufeff \t\r\n'),
    'URL encoding (%20)': unquote,
    "'./' in front": os.path.normpath,
    'capital letters': str.lower,
}
_MARKS = (b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff')  # of byte order: UTF-8, UTF-16


def say_spelling(names: Iterable[str], there: Iterable[str]) -> str:
    """Why ``names`` are missing, if ``there`` has them in another spelling; else ''."""
    by_key = {_key(name): name for name in there}
    pairs = [(name, by_key[_key(name)]) for name in names if _key(name) in by_key]
    if not pairs:
        return ''
    name, other = pairs[0]
    causes = [why for why in _CAUSES if _key(name, why) != _key(other, why)]
    what = f'{len(pairs)} of them are there in another spelling ({"; ".join(causes)})'
    return f'{what}, e.g. {name!a} is {other!a}'


def _key(name: str, but: str = '') -> str:
    """A name without what makes spellings differ, ``but`` one cause."""
    undone = (undo for cause, undo in _CAUSES.items() if cause != but)
    return reduce(lambda changed, undo: undo(changed), undone, name)


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
    if path.exists() and not path.is_file():
        raise UserError(f'{path} is not a regular file')
    try:
        content = path.read_bytes()
        text = content.decode('utf-16' if content.startswith(_MARKS[1:]) else 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not in UTF-8 ({error}): save it as UTF-8') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error})') from error
    if '\0' in text:
        raise UserError(f'{path} is not in UTF-8 (it contains NULs): save it as UTF-8')
    return text.splitlines()


def read_names(path: Path) -> list[str]:
    """Names in a text file, one a line, without empty lines; raises as :func:`read_lines`."""
    return [name for line in read_lines(path) if (name := line.strip())]


def check_list_encoding(path: Path) -> None:
    """Raise a UserError for a list that a toolbox would read wrongly: another encoding, or a
    byte-order mark, which would become a part of its first name.
    """
    read_lines(path)
    if path.read_bytes().startswith(_MARKS):
        raise UserError(f'{path} begins with a byte-order mark: save it as UTF-8 without BOM')
