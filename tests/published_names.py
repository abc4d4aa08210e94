"""Published-format CycleMLP files for tests: our weights under the published names.

Written apart from the loader, from the names in the published files, so that the two check each
other.
"""

import torch

from cyclemlp_mm.ops import cycle_offsets


def published_state_dict(model, classifier=None):
    """State dict of a CycleMLP under the published names; ``norm3`` becomes the final norm."""
    published = {}
    for name, tensor in model.state_dict().items():
        part = name.split('.')
        if part[0] == 'stem':
            part[0] = 'patch_embed'
        elif part[0] == 'stages':
            part[:2] = ['network', str(2 * int(part[1]))]
            part = ['attn' if p == 'mixer' else p for p in part]
            if part[-2] in ('sfc_h', 'sfc_w') and part[-1] == 'weight':
                tensor = tensor[:, :, None, None]
        elif part[0] == 'downsamples':
            part[:2] = ['network', str(2 * int(part[1]) - 1)]
        elif part[0] == 'norm3' and classifier is not None:
            part[0] = 'norm'
        elif part[0].startswith('norm'):
            if classifier is not None:
                continue  # a classifier has the last one only
            part[0] = f'norm{2 * int(part[0][4:])}'
        published['.'.join(part)] = tensor.clone()
        if part[-2] in ('sfc_h', 'sfc_w') and part[-1] == 'weight':
            kernel_size = (1, 3) if part[-2] == 'sfc_h' else (3, 1)
            offset = cycle_offsets(tensor.shape[1], kernel_size).float().reshape(1, -1, 1, 1)
            published['.'.join([*part[:-1], 'offset'])] = offset
    if classifier is not None:
        published['head.weight'] = torch.randn(classifier, model.out_channels[-1])
        published['head.bias'] = torch.zeros(classifier)
    return published
