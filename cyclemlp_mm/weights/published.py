"""What a family's published files look like: the interface a family's name mapping fills in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class PublishedFormat:
    """How the published files of one family name what our backbone has.

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
    """

    family: str
    example: str
    is_published: Callable[[StateDict], bool]
    to_ours: Callable[[StateDict], 'dict[str, Tensor]']
    describe: Callable[[StateDict], str]
    from_paddle: Callable[[StateDict], 'dict[str, Tensor]']
    extras: 'Mapping[str, str]' = field(default_factory=dict)
