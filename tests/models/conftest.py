"""Maps on both sides of every limit between plain and fast forms."""

import sys

import pytest

#: Limits between the plain forms and the fast ones, set so that small maps take the fast ones.
FAST = {
    'ops.cycle_mixer': dict(FOLD_MIN_NUMEL=0),
    'ops.mlp_chunks': dict(PLAIN_MAX_BYTES=0, HIDDEN_CHUNK_BYTES=1, MIN_CHUNK_TOKENS=8),
    'ops.shifted_product': dict(CPU_CHUNK_BYTES=1),
    'ops.factor_attention': dict(CHUNK_BYTES=1),
    'models.layers': dict(NCHW_PART_BYTES=1),
}


@pytest.fixture(params=['small map', 'large map'])
def form(request, monkeypatch):
    for module, limits in FAST.items() if request.param == 'large map' else ():
        for name, value in limits.items():
            monkeypatch.setattr(sys.modules[f'cyclemlp_mm.{module}'], name, value)
