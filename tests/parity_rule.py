"""The deterministic weights and golden outputs of ``../shared/parity``, for several tests."""

import functools
import importlib.util
import json

import numpy as np
import torch
from paths import PARITY
from published_names import published_state_dict

from cyclemlp_mm.models import CycleMLP


@functools.cache
def rule():
    """The module ``weights.py``: ``fill(name, shape)`` and ``image(height, width, batch)``."""
    spec = importlib.util.spec_from_file_location('parity_weights', PARITY / 'weights.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name):
    """Outputs of a published model, and the image that they are of."""
    expected = np.load(PARITY / f'golden_{name}.npz')
    return expected, rule().image(*(int(expected[k]) for k in ('height', 'width', 'batch')))


def published_keys(name):
    """Name to shape of a published model, buffers included."""
    keys = json.loads((PARITY / f'keys_{name}.json').read_text())
    return {name: tuple(entry['shape']) for name, entry in keys.items()}


def published_model_state(arch, fill, classifier):
    """A published state dict of any arch, its weights filled by a rule, offsets as they are."""
    with torch.device('meta'):
        model = CycleMLP(arch, out_indices=(3,))
    names = published_state_dict(model, classifier)
    return {
        name: tensor if name.endswith('.offset') else torch.from_numpy(fill(name, tensor.shape))
        for name, tensor in names.items()
    }


def published_weights(arch, use='cls'):
    """A published-format state dict, filled by the rule, without the constant offsets."""
    return {
        name: torch.from_numpy(rule().fill(name, shape))
        for name, shape in published_keys(f'cyclemlp_{arch}_{use}').items()
        if not name.endswith('.offset')
    }
