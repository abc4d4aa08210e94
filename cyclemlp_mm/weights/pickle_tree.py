"""The last look at what was read from a pickle: only known types, and no trap in how they nest."""

from .limits import Budget, DamagedFile, RefusedContent, shorten
from .pickle_reader import Known, refuse_type
from .pickle_types import LEAVES

_DEEPEST = 100
_MOST_UNSHARED = 1_000_000
_NOTES = 200  # bytes a container, roughly


def check_tree(content: object, pickle_size: int, budget: Budget) -> None:
    """Walk what was read, without recursion.

    Whoever uses a checkpoint walks it with recursive functions, and walks what is shared as often
    as it is referred to. So a container must not hold itself, nest over 100 deep, or, by sharing,
    stand for far more objects than the pickle spells out.

    Args:
        content (object): What the file holds.
        pickle_size (int): Bytes of its pickle.
        budget (Budget): What the walk's own notes are paid from.

    Raises:
        RefusedContent: An object of a type that is not allowed, or a container as above.
    """
    # (depth, objects) of finished containers; None while the walk is inside of one
    seen: dict[int, tuple[int, int] | None] = {}
    most = _MOST_UNSHARED + pickle_size
    stack = [] if _is_leaf(content) else [content]
    inside_of = 0
    while stack:
        node = stack[-1]
        children = _children(node)
        if id(node) not in seen:
            budget.spend(_NOTES)
            seen[id(node)] = None
            inside_of += 1
            if inside_of > _DEEPEST:
                raise RefusedContent(f'it nests containers over {_DEEPEST} deep')
            for child in children:
                if _is_leaf(child) or seen.get(id(child)):
                    continue
                if id(child) in seen:
                    raise RefusedContent('it holds a container that holds itself')
                stack.append(child)
            if stack[-1] is not node:
                continue
        stack.pop()
        if seen[id(node)] is None:
            inside = [seen[id(child)] for child in children if not _is_leaf(child)]
            depth = 1 + max((d for d, _ in inside), default=0)
            count = 1 + len(children) + sum(n for _, n in inside)
            inside_of -= 1
            if depth > _DEEPEST:
                raise RefusedContent(f'it nests containers over {_DEEPEST} deep')
            if count > most:
                raise RefusedContent(
                    'it refers to the same containers over and over: unfolded, they are over '
                    f'{most} objects'
                )
            seen[id(node)] = (depth, count)


def _children(node: object) -> list:
    if isinstance(node, dict):
        # An OrderedDict carries the versions of modules as an attribute.
        return [*dict.values(node), *getattr(node, '__dict__', {}).values()]
    return list(node)


def _is_leaf(value: object) -> bool:
    if isinstance(value, LEAVES):
        return True
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return False
    if isinstance(value, Known):
        raise refuse_type(value.name)
    raise DamagedFile(f'it holds a {shorten(type(value).__name__)} in place of a value')
