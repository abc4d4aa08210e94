"""Outputs of the published MPViT, reproduced through published-format files."""

import json

import pytest
import torch
from mmengine.registry import MODELS
from parity_rule import fill, golden
from paths import PARITY, needs_parity

import cyclemlp_mm  # noqa: F401 - registers the backbone

GOLDEN = sorted(path.stem.removeprefix('golden_') for path in PARITY.glob('golden_mpvit_*.npz'))


def published_mpvit(name):
    """A published-format state dict; a tensor under a second name has the first one's numbers."""
    keys = json.loads((PARITY / f'keys_{name}.json').read_text())
    return {
        key: torch.from_numpy(fill(entry.get('same_as', key), entry['shape']))
        for key, entry in keys.items()
    }


@needs_parity
@pytest.mark.parametrize('name', GOLDEN or ['none found'])
def test_equals_the_published_outputs(name, tmp_path, log_lines):
    state = published_mpvit(name)
    torch.save({'model': state}, tmp_path / 'published.pth')
    model = MODELS.build(
        dict(
            type='MPViT',
            arch=name.removeprefix('mpvit_'),
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth')),
        )
    )
    model.init_weights()
    total = len(model.state_dict())
    assert any(f'loaded {total} of {total} tensors' in line for line in log_lines)
    expected, image = golden(name)
    with torch.no_grad():
        levels = model.eval()(torch.from_numpy(image))
    got = {f'level{i}': level for i, level in enumerate(levels)}
    pooled = levels[-1].mean(dim=(2, 3))
    got['logits'] = pooled @ state['cls_head.cls.weight'].T + state['cls_head.cls.bias']
    assert set(got) == {key for key in expected if key not in ('height', 'width', 'batch')}
    for key, ours in got.items():
        theirs = torch.from_numpy(expected[key])
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), key
