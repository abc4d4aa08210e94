"""What a family's published files look like: the interface a family's name mapping fills in."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from cyclemlp_mm.errors import CheckpointError

StateDict = Mapping[str, Tensor]


def has_name(*patterns: str) -> Callable[[StateDict], bool]:
    """A test whether one of the names in a state dict matches one of the patterns, as a whole."""
    return lambda names: any(re.fullmatch(p, name) for name in names for p in patterns)


def count_per_stage(names: StateDict, pattern: str) -> dict[int, int]:
    """How many each stage has, in order. The pattern's groups are stage and number."""
    found = [re.match(pattern, name) for name in names]
    pairs = [(int(match[1]), int(match[2]) + 1) for match in found if match]
    return dict(sorted(pairs))  # the largest number of each stage is the last


def widths_per_stage(state_dict: StateDict, pattern: str) -> dict[int, int]:
    """Lengths of the tensors that match, by stage, which is the pattern's group, in order."""
    found = {name: re.fullmatch(pattern, name) for name in state_dict}
    return dict(sorted((int(m[1]), state_dict[n].shape[:1].numel()) for n, m in found.items() if m))


def joined(numbers: Mapping[int, int]) -> str:
    """Such as '2-2-4-2'."""
    return '-'.join(map(str, numbers.values()))


_never = has_name()


def _count(state_dict: StateDict) -> str:
    return f'{len(state_dict)} tensors'


def _no_paddle(state_dict: StateDict) -> dict[str, Tensor]:
    raise CheckpointError(
        'it is a Paddle file of a family without a known Paddle port: which of its weights are '
        'transposed is not known'
    )


@dataclass(frozen=True)
class PublishedFormat:
    """How the published files of one family name what our backbone has.

    The first two suffice for a family without published files. All formats are in ``FAMILIES``:
    files of whole models are recognised by them.

    Attributes:
        family (str): Family name, for messages.
        example (str): A name every published file holds.
        our_example (str): A name every backbone of ours holds. Defaults to that.
        is_published (Callable): Whether these names are the published ones (else: ours).
        to_ours (Callable): Published state dict to our names and shapes. Constants of the
            architecture are checked and dropped; raises CheckpointError if they differ.
        describe (Callable): One line on the architecture that a state dict under our names holds.
        from_paddle (Callable): State dict of a Paddle port, Linear weights (in, out), to the
            published one, Linear weights (out, in): by module type, never by shape.
        extras (Mapping[str, str]): Kinds of tensors that a file may hold beyond the backbone: kind
            to a regular expression on our names. Defaults to a classifier.
        is_certain (Callable): Whether names are this family's published ones and no relative's, so
            that a whole model's file can be recognised by them.
        is_ours (Callable): Whether names, without a prefix, are those of our backbone.
    """

    family: str
    example: str
    our_example: str = ''
    is_published: Callable[[StateDict], bool] = _never
    to_ours: Callable[[StateDict], dict[str, Tensor]] = dict
    describe: Callable[[StateDict], str] = _count
    from_paddle: Callable[[StateDict], dict[str, Tensor]] = _no_paddle
    extras: Mapping[str, str] = field(
        default_factory=lambda: {'classifier': r'head\.(fc\.)?(weight|bias)'}
    )
    is_certain: Callable[[StateDict], bool] = _never
    is_ours: Callable[[StateDict], bool] = _never

    def __post_init__(self) -> None:
        FAMILIES[self.family] = self

    @property
    def anchors(self) -> tuple[str, str]:
        """Names by which a backbone is found in a file, whatever its prefix: published, ours."""
        return self.example, self.our_example or self.example


#: Every format, by its family.
FAMILIES: dict[str, PublishedFormat] = {}
