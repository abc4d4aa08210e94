"""The weights and images of golden outputs, which are functions of names and sizes alone.

``tests/data`` has a summary of such outputs for each family, ``../shared/parity`` whole ones.
"""

import json
import zlib

import numpy as np
import torch
from paths import PARITY
from published_names import published_state_dict

from cyclemlp_mm.models import CycleMLP


def fill(name, shape):
    """Numbers of a tensor, a function of its name and shape: the same on every machine."""
    rng, shape = np.random.default_rng(zlib.crc32(name.encode())), tuple(shape)
    if name.endswith('running_var'):
        return (0.5 + rng.random(shape)).astype(np.float32)
    if name.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    numbers = rng.standard_normal(shape)
    if len(shape) > 1:  # a weight: the variance of what passes it stays near 1
        return (numbers / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    is_scale = name.endswith('weight')
    return (is_scale + 0.1 * numbers).astype(np.float32)


def filled(state_dict):
    """The same names with numbers of the rule; of the first name where two names share a tensor.

    ``state_dict`` is one with ``keep_vars=True``. CycleMLP's offsets, which are constants, are left
    out, as a published file may leave them out.
    """
    first = {}
    for name, tensor in state_dict.items():
        first.setdefault(id(tensor), name)
    return {
        name: torch.from_numpy(fill(first[id(tensor)], tensor.shape))
        for name, tensor in state_dict.items()
        if not name.endswith('.offset')
    }


def image(height, width, batch=2):
    """The input of the golden outputs: (batch, 3, height, width), standard normal."""
    rng = np.random.default_rng(height * 10007 + width)
    return rng.standard_normal((batch, 3, height, width)).astype(np.float32)


def golden(name):
    """Outputs of a published model, and the image that they are of."""
    expected = np.load(PARITY / f'golden_{name}.npz')
    return expected, image(*(int(expected[k]) for k in ('height', 'width', 'batch')))


def published_keys(name):
    """Name to shape of a published model, buffers included."""
    keys = json.loads((PARITY / f'keys_{name}.json').read_text())
    return {name: tuple(entry['shape']) for name, entry in keys.items()}


def published_model_state(arch, classifier):
    """A published state dict of any arch, its weights filled by the rule, offsets as they are."""
    with torch.device('meta'):
        model = CycleMLP(arch, out_indices=(3,))
    names = published_state_dict(model, classifier)
    return {
        name: tensor if name.endswith('.offset') else torch.from_numpy(fill(name, tensor.shape))
        for name, tensor in names.items()
    }


def published_tensors(name):
    """A published-format state dict, filled by the rule, without the constant offsets; a tensor
    under a second name has the first one's numbers."""
    keys = json.loads((PARITY / f'keys_{name}.json').read_text())
    return {
        key: torch.from_numpy(fill(entry.get('same_as', key), entry['shape']))
        for key, entry in keys.items()
        if not key.endswith('.offset')
    }
