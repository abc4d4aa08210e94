"""Outputs of the published implementation, reproduced through published-format files."""

import pytest
import torch
from mmengine.registry import MODELS
from parity_rule import golden, published_weights
from paths import PARITY, needs_parity

import cyclemlp_mm  # noqa: F401 - registers the backbone

GOLDEN = sorted(path.stem.removeprefix('golden_') for path in PARITY.glob('golden_cyclemlp_*.npz'))


@needs_parity
@pytest.mark.parametrize('name', GOLDEN or ['none found'])
def test_equals_the_published_outputs(name, tmp_path):
    _, arch, use = name.split('_')
    state = published_weights(arch, use)
    torch.save(state, tmp_path / 'published.pth')
    model = MODELS.build(
        dict(
            type='CycleMLP',
            arch=arch,
            out_indices=(3,) if use == 'cls' else (0, 1, 2, 3),
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth')),
        )
    )
    model.init_weights()
    model.eval()
    expected, image = golden(name)
    with torch.no_grad():
        levels = model(torch.from_numpy(image))
    got = {f'level{i}': level for i, level in enumerate(levels)}
    if use == 'cls':
        pooled = levels[-1].mean(dim=(2, 3))
        got = {'logits': pooled @ state['head.weight'].T + state['head.bias']}
    assert got
    for name, ours in got.items():
        theirs = torch.from_numpy(expected[name])
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name
