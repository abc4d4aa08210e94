"""Outputs of the published implementation, reproduced through published-format files."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from paths import PARITY, needs_parity

import cyclemlp_mm  # noqa: F401 - registers the backbone

GOLDEN = sorted(path.stem for path in PARITY.glob('golden_cyclemlp_*.npz'))


def _rule():
    spec = importlib.util.spec_from_file_location('parity_weights', PARITY / 'weights.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_parity
@pytest.mark.parametrize('golden', GOLDEN or ['none found'])
def test_equals_the_published_outputs(golden, tmp_path):
    rule = _rule()
    _, _, arch, use = golden.split('_')
    names = json.loads((PARITY / f'keys_cyclemlp_{arch}_{use}.json').read_text())
    state = {
        name: torch.from_numpy(rule.fill(name, entry['shape']))
        for name, entry in names.items()
        if not name.endswith('.offset')
    }
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
    expected = np.load(PARITY / f'{golden}.npz')
    size = (int(expected['height']), int(expected['width']), int(expected['batch']))
    with torch.no_grad():
        levels = model(torch.from_numpy(rule.image(*size)))
    got = {f'level{i}': level for i, level in enumerate(levels)}
    if use == 'cls':
        pooled = levels[-1].mean(dim=(2, 3))
        got = {'logits': pooled @ state['head.weight'].T + state['head.bias']}
    assert got
    for name, ours in got.items():
        theirs = torch.from_numpy(expected[name])
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name
