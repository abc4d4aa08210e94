"""One rule for ``arch``: a name of the family's table, or a dict with exactly the table's keys."""

from collections.abc import Mapping


def resolve_arch(arch: 'str | Mapping', table: 'Mapping[str, Mapping]', family: str) -> dict:
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
