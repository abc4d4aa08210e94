"""From what a checkpoint file holds to the backbone's own tensors."""

from collections.abc import Mapping

from torch import Tensor

from cyclemlp_mm.errors import CheckpointError

from .limits import shorten

#: Keys under which files in the wild keep the state dict.
WRAPPERS = ('state_dict', 'model')


def find_state_dict(content: object, source: str) -> 'dict[str, Tensor]':
    """The state dict in a checkpoint: bare, or under ``state_dict`` or ``model``.

    Args:
        content (object): What the file holds.
        source (str): The file, for messages.

    Returns:
        dict[str, Tensor]: Names to tensors, ``module.`` prefixes removed.

    Raises:
        CheckpointError: No dict of tensors is found.
    """
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f'checkpoint {source} holds no state dict: expected names and tensors, bare or under '
            f'{" or ".join(map(repr, WRAPPERS))}, but got {_say(content)}'
        )
    wrong = [str(k) for k, v in content.items() if not (isinstance(k, str) and _is_tensor(v))]
    if wrong:
        raise CheckpointError(
            f'checkpoint {source} is no state dict: {len(wrong)} of {len(content)} entries are '
            f'not tensors under a name, e.g. {shorten(wrong[:3], 240)}'
        )
    return {_strip_module(name): tensor for name, tensor in content.items()}


def select_backbone(
    state_dict: 'Mapping[str, Tensor]', prefix: 'str | None', source: str
) -> 'tuple[dict[str, Tensor], int]':
    """The tensors of the backbone, prefix removed, and how many others the file has.

    Args:
        state_dict (Mapping[str, Tensor]): A backbone's, classifier's, detector's or segmentor's.
        prefix (str, optional): What the backbone's names begin with, with the file's ``module.`` or
            without. None takes those that begin with ``backbone.``, or all where none does.
        source (str): The file, for messages.

    Returns:
        tuple[dict[str, Tensor], int]: The backbone's tensors and the number left.

    Raises:
        CheckpointError: Nothing begins with ``prefix``.
    """
    if prefix is None:
        prefix = 'backbone.' if any(n.startswith('backbone.') for n in state_dict) else ''
    else:
        if prefix and not prefix.endswith('.'):
            prefix += '.'
        prefix = _strip_module(prefix)  # as find_state_dict did with the names
    chosen = {n[len(prefix):]: t for n, t in state_dict.items() if n.startswith(prefix)}
    if not chosen:
        raise CheckpointError(
            f'checkpoint {source} has no name that begins with prefix={prefix!r}; its names begin '
            f'with {first_parts(state_dict)}'
        )
    return chosen, len(state_dict) - len(chosen)


def first_parts(names: 'Mapping[str, Tensor]', most: int = 5) -> str:
    """The distinct first parts of dotted names, for messages."""
    parts = list(dict.fromkeys(name.split('.')[0] for name in names))
    return ', '.join(map(shorten, parts[:most])) + (', …' if len(parts) > most else '')


def _strip_module(name: str) -> str:
    while name.startswith('module.'):
        name = name[len('module.'):]
    return name


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _say(content: object) -> str:
    if isinstance(content, Mapping):
        return f'a dict with {len(content)} keys'
    return f'a {type(content).__name__}'
