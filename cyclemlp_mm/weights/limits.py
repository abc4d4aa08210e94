"""The two ways in which a file is rejected, and text from a file made fit for a message."""


class DamagedFile(ValueError):
    """The bytes are not what the format says: truncated, changed, or another format."""


class RefusedContent(ValueError):
    """The file is whole, but holds what a checkpoint may not hold."""


def shorten(value: object, most: int = 80) -> str:
    """A value from a file, fit for a message: printable, and not megabytes long.

    Only text, short numbers and lists of text are written out: a few bytes of a pickle can stand
    for a container whose ``repr`` never ends.
    """
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = f'[{", ".join(repr(item[:most]) for item in value[:10])}]'
    elif isinstance(value, (bool, float, type(None))) or (
        isinstance(value, int) and value.bit_length() < 64
    ):
        text = repr(value)
    else:
        text = value if isinstance(value, str) else f'a {type(value).__name__}'
    text = ''.join(c if c.isprintable() else '?' for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + '…'
