"""Whether a graph is being recorded, which is to hold standard operators on whole maps."""

import torch


def is_recording() -> bool:
    """True inside ``torch.compile`` (before PyTorch 2.3 there is no public way to tell) and
    ``torch.jit.trace``, which counters of operations use, too."""
    ask = getattr(torch.compiler, 'is_compiling', None)
    return torch.jit.is_tracing() or (ask is not None and ask())
