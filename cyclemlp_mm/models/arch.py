"""Rules for arguments that all backbones have; values from a config may be of another type."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence


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
            raise ValueError(
                f'arch {key} must be {num_stages} positive ints, but got {settings[key]!r}'
            )
        settings[key] = values


def check_bool(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False, else raise TypeError: 'False' would be true."""
    if type(value) is not bool:
        raise TypeError(f'{name} must be True or False, but got {value!r}')
    return value


def check_positive_int(name: str, value: int) -> int:
    """Return ``value`` if it is an int of at least 1, else raise ValueError."""
    if type(value) is not int or value < 1:
        raise ValueError(f'{name} must be a positive int, but got {value!r}')
    return value


def check_odd_int(name: str, value: int) -> int:
    """Return ``value`` if it is an odd int of at least 1, else raise ValueError."""
    if type(value) is not int or value < 1 or value % 2 == 0:
        raise ValueError(f'{name} must be an odd, positive int such as 3, but got {value!r}')
    return value


def check_some_of(name: str, values: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Return ``values``, different ones of ``known`` and at least one, in the order of ``known``;
    else raise ValueError."""
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    found = tuple(value for value in known if value in listed)
    if not found or len(found) != len(listed):
        raise ValueError(
            f'{name} must be a tuple of at least one of {tuple(known)}, none of them twice, such '
            f'as {tuple(known)[:1]}, but got {values!r}'
        )
    return found


def resolve_out_indices(out_indices: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Levels to return, of which negative ones count from the last, as ascending indices; raises
    TypeError if they are not ints, ValueError if none, out of range or not ascending."""
    listed = (out_indices,) if isinstance(out_indices, int) else out_indices
    is_list = isinstance(listed, Sequence) and not isinstance(listed, str)
    if not is_list or any(type(i) is not int for i in listed):
        raise TypeError(f'out_indices must be ints, but got {out_indices!r}')
    resolved = tuple(i % num_levels for i in listed)
    in_range = all(-num_levels <= i < num_levels for i in listed)
    if not listed or not in_range or any(b <= a for a, b in itertools.pairwise(resolved)):
        raise ValueError(
            f'out_indices must be different ints from {-num_levels} to {num_levels - 1}, fine to '
            f'coarse, but got {out_indices}'
        )
    return resolved


def check_frozen_stages(frozen_stages: int, num_levels: int) -> int:
    """Return ``frozen_stages`` if it is an int (TypeError) in [-1, num_levels] (ValueError)."""
    if type(frozen_stages) is not int:
        raise TypeError(f'frozen_stages must be an int, but got {frozen_stages!r}')
    if not -1 <= frozen_stages <= num_levels:
        raise ValueError(f'frozen_stages must be -1 to {num_levels}, but got {frozen_stages}')
    return frozen_stages


def halved(height: int, width: int, levels: Sequence[int]) -> list[tuple[int, int]]:
    """The sizes of ``levels``, each half the one before, rounded up; (height, width) of level 0."""
    return [((height + 2**i - 1) // 2**i, (width + 2**i - 1) // 2**i) for i in levels]
