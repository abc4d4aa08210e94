"""Paths as users type them."""

from pathlib import Path

from cyclemlp_mm.errors import MissingFileError


def user_path(text: str | Path) -> Path:
    """A path with ``~`` and ``~name`` replaced by the home folders.

    Raises:
        MissingFileError: There is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        name = Path(text).parts[0]
        raise MissingFileError(
            f'{text}: there is no home folder {name}; for a folder of that name, give ./{text}'
        ) from error
