"""Rules for arguments that all backbones have; values from a config may be of another type."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence


def resolve_arch(
    arch: str | Mapping,
    table: Mapping[str, Mapping],
    family: str,
    optional: Mapping[str, object] | None = None,
) -> dict:
    """The settings of an architecture of a ``family``: a name of ``table`` (any case), or a mapping
    with exactly the keys of its rows, and any of the ``optional`` ones, which has their defaults;
    else raises ValueError, or TypeError for other types."""
    optional = optional or {}
    if isinstance(arch, str):
        if arch.lower() not in table:
            raise ValueError(f'{family} has no arch {arch!r}; it has {", ".join(table)}')
        return {**optional, **table[arch.lower()]}
    if not isinstance(arch, Mapping):
        names = ', '.join(table)
        raise TypeError(f'arch of {family} must be one of {names}, or a dict, but got {arch!r}')
    expected = set(next(iter(table.values())))
    missing, unknown = sorted(expected - set(arch)), sorted(set(arch) - expected - set(optional))
    if missing or unknown:
        raise ValueError(f'arch dict of {family}: {missing} are missing, {unknown} are unknown')
    return {**optional, **arch}


def check_per_stage(settings: dict, keys: Sequence[str], num_stages: int = 4) -> None:
    """Make settings tuples, in place, or raise ValueError: of a positive int per stage each."""
    for key in keys:
        values = settings[key]
        values = tuple(values) if isinstance(values, Sequence) else ()
        if len(values) != num_stages or any(type(v) is not int or v < 1 for v in values):
            expected = f'{num_stages} positive ints'
            raise ValueError(f'arch {key} must be {expected}, but got {settings[key]!r}')
        settings[key] = values


def check_bool(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False, else raise TypeError: 'False' would be true."""
    if type(value) is not bool:
        raise TypeError(f'{name} must be True or False, but got {value!r}')
    return value


def check_int(
    name: str, value: int, least: int = 1, most: int | None = None, odd: bool = False
) -> int:
    """Return ``value`` if it is an int from ``least`` to ``most``, and odd if asked for; else raise
    TypeError for another type, and ValueError for another number."""
    limits = f'{least} to {most}' if most is not None else f'at least {least}'
    expected = f'{name} must be {"an odd" if odd else "an"} int, {limits}, but got {value!r}'
    if type(value) is not int:
        raise TypeError(expected)
    if value < least or (most is not None and value > most) or (odd and value % 2 == 0):
        raise ValueError(expected)
    return value


def check_some_of(name: str, values: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return ``values``, different ones of ``known`` and at least one, in the order of ``known``;
    else raise ValueError."""
    found = tuple(v for v in known if isinstance(values, (list, tuple)) and v in values)
    if not found or len(found) != len(values):
        expected = f'a tuple of at least one of {tuple(known)}, none of them twice'
        raise ValueError(f'{name} must be {expected}, but got {values!r}')
    return found


def resolve_out_indices(out_indices: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Levels to return, of which negative ones count from the last, as ascending indices; raises
    TypeError if they are not ints, ValueError if none, out of range or not ascending."""
    listed = (out_indices,) if isinstance(out_indices, int) else out_indices
    if not isinstance(listed, Sequence) or any(type(i) is not int for i in listed):
        raise TypeError(f'out_indices must be ints, but got {out_indices!r}')
    resolved = tuple(i % num_levels for i in listed)
    in_range = all(-num_levels <= i < num_levels for i in listed)
    if not listed or not in_range or any(b <= a for a, b in itertools.pairwise(resolved)):
        expected = f'different ints from {-num_levels} to {num_levels - 1}, fine to coarse'
        raise ValueError(f'out_indices must be {expected}, but got {out_indices}')
    return resolved
