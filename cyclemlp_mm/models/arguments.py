"""Checks of arguments that several backbones have: a text from a config is neither bool nor int."""


def check_bool(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False: the text 'False' would count as True.

    Raises:
        TypeError: Anything else.
    """
    if type(value) is not bool:
        raise TypeError(f'{name} must be True or False, but got {value!r}')
    return value


def check_positive_int(name: str, value: int) -> int:
    """Return ``value`` if it is an int of at least 1.

    Raises:
        ValueError: Anything else.
    """
    if type(value) is not int or value < 1:
        raise ValueError(f'{name} must be a positive int, but got {value!r}')
    return value
