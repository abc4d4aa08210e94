"""Backbones that two processes share by FSDP, against the same ones whole; run by torchrun.

Prints a line for each family: the largest difference of its levels and of its gradients.
"""

import copy
from functools import partial
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

from cyclemlp_mm.engine import load_config, shard_layers
from cyclemlp_mm.models import CycleMLP, MPViT

WIDTHS = dict(depths=(1, 1, 2, 1), widths=(16, 24, 32, 40))
LAYERS = load_config('upernet_cyclemlp_b5_512x512_160k_ade20k_fsdp')['strategy']['model_wrapper'][
    'auto_wrap_policy'
]['layers']


def families():
    """Small backbones by name."""
    for reweight, downsample in ((True, 'conv'), (False, 'patch_merging')):
        arch = dict(mlp_ratios=(4, 4, 4, 4), reweight=reweight, downsample=downsample)
        yield f'CycleMLP {downsample}', CycleMLP(dict(**WIDTHS, **arch))
    yield 'CycleMLP with_cp', CycleMLP(dict(**WIDTHS, **arch), with_cp=True)
    yield 'MPViT', MPViT(dict(**WIDTHS, paths=(2, 3, 3, 3), mlp_ratio=4), norm_eval=True)
    if find_spec('mmpretrain') is None:
        return
    from cyclemlp_mm.models.repmlp import RepMLPNet

    arch = dict(channels=[16, 32, 64, 128], depths=[1, 1, 2, 1], sharesets_nums=[1, 4, 16, 32])
    yield 'RepMLP', RepMLPNet(arch, img_size=64, norm_eval=True)


def compare(name, backbone, size):
    """One pass forward and back, of both."""
    whole = copy.deepcopy(backbone).train()
    units = FullyShardedDataParallel(
        backbone.train(),
        auto_wrap_policy=partial(shard_layers, layers=LAYERS),
        device_id=torch.device('cpu'),
        use_orig_params=True,
    )
    dealt_out = sum(isinstance(m, FullyShardedDataParallel) for m in units.modules()) - 1
    held = sum(p.numel() for p in units.parameters())
    image = torch.randn(2, 3, size, size)
    levels, expected = units(image), whole(image)
    # Not Python's max(), which may pass over nan.
    worst = torch.stack([(a - b).abs().max() for a, b in zip(levels, expected, strict=True)]).max()
    for outputs in (levels, expected):
        sum(level.square().mean() for level in outputs).backward()
    with FullyShardedDataParallel.summon_full_params(units, with_grads=True):
        grads = [p.grad for p in units.parameters()]
        worst_grad = torch.stack(
            [
                (a - p.grad).abs().max() / p.grad.abs().max().clamp(min=1e-3)
                for a, p in zip(grads, whole.parameters(), strict=True)
            ]
        ).max()
    part = held / sum(p.numel() for p in whole.parameters())
    if dist.get_rank() == 0:
        print(
            f'{name} {size} px: units {dealt_out}, held {part:.2f}, levels {worst:.1e}, '
            f'gradients {worst_grad:.1e}',
            flush=True,
        )
    assert dealt_out and part < 0.6 and worst < 1e-5 and worst_grad < 1e-4


if __name__ == '__main__':
    dist.init_process_group('gloo')
    torch.manual_seed(0)  # the same models and images in both processes
    for side in (64, 256):
        for name, backbone in families():
            compare(name, backbone, side)
    dist.barrier()
    dist.destroy_process_group()
