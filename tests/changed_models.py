"""Models whose layers are all called, to compare others with."""

import copy


def by_layers(model):
    """The same model with hooks everywhere, so that every layer is called: PyTorch alone."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
        if hasattr(module, 'backend'):
            module.backend = 'auto'  # the others cannot call layers
    return model
