"""The rule that fills published names with numbers, and the published names, from ../shared."""

import importlib.util
import json

import torch
from paths import PARITY


def rule():
    """The module that ships with the golden data."""
    spec = importlib.util.spec_from_file_location('parity_weights', PARITY / 'weights.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published_weights(arch, use='cls'):
    """A published-format state dict, filled by the rule, without the constant offsets."""
    names = json.loads((PARITY / f'keys_cyclemlp_{arch}_{use}.json').read_text())
    fill = rule().fill
    return {
        name: torch.from_numpy(fill(name, entry['shape']))
        for name, entry in names.items()
        if not name.endswith('.offset')
    }
