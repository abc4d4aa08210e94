"""What reading a checkpoint may cost, and the two ways in which a file is turned down."""

#: For small files: Python's own objects weigh more than the bytes that describe them.
FLOOR = 8 * 1024 * 1024


class DamagedFile(ValueError):
    """The bytes are not what the format says: truncated, changed, or another format."""


class RefusedContent(ValueError):
    """The file is whole, but holds what a checkpoint may not hold."""


class Budget:
    """Memory that reading one file may take: twice its size, and a floor for small ones.

    Whoever is about to allocate what a file declares spends it here first, so that a few bytes
    cannot ask for gigabytes.

    Args:
        file_size (int): Bytes of the file.
    """

    def __init__(self, file_size: int) -> None:
        self._file_size = file_size
        self._left = 2 * file_size + FLOOR

    def spend(self, amount: int) -> None:
        """Take ``amount`` bytes off.

        Raises:
            DamagedFile: More was declared than a file of this size holds.
        """
        self._left -= amount
        if amount < 0 or self._left < 0:
            raise DamagedFile(
                f'it declares more data than a file of {self._file_size} bytes can hold'
            )

    def give_back(self, amount: int) -> None:
        """Return what was spent on something that is gone again."""
        self._left += amount


def shorten(text: object, most: int = 80) -> str:
    """A name from a file, fit for a message: printable, and not megabytes long."""
    text = str(text) if isinstance(text, str) else repr(text)[: 4 * most]
    text = ''.join(c if c.isprintable() else '?' for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + '…'
