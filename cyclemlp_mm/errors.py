"""Errors that a user can fix; their messages name what failed, where, and how to fix it.

The tools print these without a traceback. Anything else is a defect and keeps its traceback.
"""


class UserError(ValueError):
    """An argument, config or data file cannot be used."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist."""


class MissingToolboxError(UserError, ImportError):
    """A toolbox that a config needs cannot be imported."""


class CheckpointError(UserError):
    """A checkpoint cannot be read or does not fit the model."""


class CodeError(UserError):
    """Code of a config's module or of a model failed; the tools print its cause's traceback."""


class DownloadError(CheckpointError):
    """The file of a URL cannot be downloaded."""


def shorten(value: object, most: int = 80) -> str:
    """A value from a file, fit for a message: printable, and not megabytes long.

    Only text, short numbers and lists of text are written out: a few bytes of a pickle can stand
    for a container whose ``repr`` never ends.
    """
    is_short = isinstance(value, int) and value.bit_length() < 64
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = f'[{", ".join(repr(item[:most]) for item in value[:10])}]'
    elif is_short or isinstance(value, (float, type(None))):
        text = repr(value)
    else:
        text = value if isinstance(value, str) else f'a {type(value).__name__}'
    text = ''.join(c if c.isprintable() else '?' for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + '…'


def count(number: int, noun: str) -> str:
    """'1 box', '2 boxes'."""
    ending = 'es' if noun.endswith(('x', 'ss')) else 's'
    return f'{number} {noun}{ending * (number != 1)}'


def some(things: list, most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f' and {len(things) - most} more' if len(things) > most else ''
    return f'{", ".join(map(str, things[:most]))}{more}'
