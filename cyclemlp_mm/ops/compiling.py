"""Whether ``torch.compile`` is tracing."""

import torch


def is_compiling() -> bool:
    """True inside ``torch.compile``; before PyTorch 2.3 there is no public way to tell."""
    ask = getattr(torch.compiler, 'is_compiling', None)
    return ask is not None and ask()
