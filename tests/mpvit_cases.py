"""What several tests of MPViT need."""

from cyclemlp_mm.models import MPViT

TINY = dict(depths=(1, 2, 1, 1), widths=(8, 16, 16, 24), paths=(2, 3, 2, 2), mlp_ratio=2)


def worst(a, b):
    """Largest difference, relative to the largest value of ``b``."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def copy_weights(plain, ours):
    """Load a :class:`plain_mpvit.PlainMPViT` into our model, completely."""
    ours.load_state_dict(MPViT.published_format.to_ours(plain.state_dict()))
    return ours
