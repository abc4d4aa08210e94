"""What a family's published files look like: the interface a family's name mapping fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from cyclemlp_mm.errors import CheckpointError

StateDict = Mapping[str, Tensor]


def _never(state_dict: StateDict) -> bool:
    return False


def _count(state_dict: StateDict) -> str:
    return f'{len(state_dict)} tensors'


def _no_paddle(state_dict: StateDict) -> dict[str, Tensor]:
    raise CheckpointError(
        'it is a Paddle file, of a family without a known Paddle port: which of its weights are '
        'transposed is not known'
    )


@dataclass(frozen=True)
class PublishedFormat:
    """How the published files of one family name what our backbone has.

    The first two suffice for a family without published files.

    Attributes:
        family (str): Family name, for messages.
        example (str): A name every published file holds, for messages.
        is_published (Callable): Whether these names are the published ones (else: ours).
        to_ours (Callable): Published state dict to our names and shapes. Constants of the
            architecture are checked and dropped; raises CheckpointError if they differ.
        describe (Callable): One line on the architecture that a state dict under our names holds.
        from_paddle (Callable): State dict of a Paddle port, Linear weights (in, out), to the
            published one, Linear weights (out, in): by module type, never by shape.
        extras (Mapping[str, str]): Kinds of tensors that a file may hold beyond the backbone: kind
            to a regular expression on our names.
        is_certain (Callable): Whether names are this family's published ones and no relative's, so
            that a whole model's file can be told by them.
        is_ours (Callable): Whether names, without a prefix, are those of our backbone.
    """

    family: str
    example: str
    is_published: Callable[[StateDict], bool] = _never
    to_ours: Callable[[StateDict], dict[str, Tensor]] = dict
    describe: Callable[[StateDict], str] = _count
    from_paddle: Callable[[StateDict], dict[str, Tensor]] = _no_paddle
    extras: Mapping[str, str] = field(default_factory=dict)
    is_certain: Callable[[StateDict], bool] = _never
    is_ours: Callable[[StateDict], bool] = _never
