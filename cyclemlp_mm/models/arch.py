"""One rule for ``arch``: a name of the family's table, or a dict with exactly the table's keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def resolve_arch(arch: str | Mapping, table: Mapping[str, Mapping], family: str) -> dict:
    """Look an architecture up.

    Args:
        arch (str | Mapping): A name of ``table`` (any case), or a mapping with exactly the keys
            that the table's rows have.
        table (Mapping[str, Mapping]): The family's architectures by name.
        family (str): The family's name, for messages.

    Returns:
        dict: The settings, a copy.

    Raises:
        ValueError: Unknown name, or a mapping with missing or unknown keys.
        TypeError: Neither a str nor a mapping.
    """
    if isinstance(arch, str):
        if arch.lower() not in table:
            raise ValueError(f'{family} has no arch {arch!r}; it has {", ".join(table)}')
        return dict(table[arch.lower()])
    if not isinstance(arch, Mapping):
        raise TypeError(
            f'arch of {family} must be a name ({", ".join(table)}) or a dict, but got {arch!r}'
        )
    expected = set(next(iter(table.values())))
    missing, unknown = sorted(expected - set(arch)), sorted(set(arch) - expected)
    if missing or unknown:
        said = [f'misses {missing}'] * bool(missing) + [f'does not know {unknown}'] * bool(unknown)
        raise ValueError(f'arch dict of {family} {" and ".join(said)}; keys: {sorted(expected)}')
    return dict(arch)


def check_four_ints(settings: dict, keys: tuple[str, ...]) -> None:
    """Make the settings of every stage tuples, or refuse them.

    Args:
        settings (dict): An arch's settings, changed in place.
        keys (tuple[str]): Those with a value per stage.

    Raises:
        ValueError: Not four positive ints.
    """
    for key in keys:
        values = settings[key]
        values = tuple(values) if isinstance(values, Sequence) else ()
        if len(values) != 4 or any(type(v) is not int or v < 1 for v in values):
            raise ValueError(f'arch {key} must be four positive ints, but got {settings[key]!r}')
        settings[key] = values
