"""MPViT's and RepMLP's configs: sizes and settings; steps are in test_all_configs."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cyclemlp_mm.analysis import build_on_meta
from cyclemlp_mm.engine import configs_dir, load_config, require_toolbox
from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import MPViT, to_deploy
from cyclemlp_mm.weights.unwrap import part_of


def test_upernets_multiply_adds_are_the_published_ones():
    model = build_on_meta(load_config('upernet_mpvit_small_512x512_160k_ade20k'))
    image = torch.empty(1, 3, 512, 2048, device='meta')  # the size that mmseg's zoo counts at
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image, mode='tensor')
    assert counter.get_total_flops() / 2 == pytest.approx(943e9, rel=0.01)


@pytest.mark.parametrize('head, quoted', [('retinanet', 17), ('mask_rcnn', 28)])
def test_the_sizes_quoted_of_tiny_are_those_of_ratio_4(head, quoted):
    """The published weights have ratio 2: a config of ratio 4 could not load them."""
    cfg = load_config(f'{head}_mpvit_tiny_fpn_1x_coco')
    cfg.model.backbone.update(arch=dict(MPViT.arch_zoo['tiny'], mlp_ratio=4))
    assert round(sum(p.numel() for p in build_on_meta(cfg).parameters()) / 1e6) == quoted


CONFIGS = [path.stem for path in configs_dir().glob('*.py')]


def of_mmpretrain(name, device='meta'):
    """A published RepMLPNet, as mmpretrain's config builds it."""
    mmpretrain = pytest.importorskip('mmpretrain')
    configs = Path(mmpretrain.__file__).parent / '.mim/configs/repmlp'
    cfg = Config.fromfile(configs / f'{name}.py')
    init_default_scope('mmpretrain')
    with torch.device(device), DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model)


#: RepMLP's configs by the name of mmpretrain's config, whose file they take.
ZOO = {
    'repmlp-base_8xb64_in1k': (
        *('repmlp_b_in1k', 'retinanet_repmlp_b_fpn_1x_coco', 'fpn_repmlp_b_512x512_40k_ade20k'),
    ),
    'repmlp-base_8xb64_in1k-256px': (
        *('repmlp_b_256px_in1k', 'fpn_repmlp_b_256px_512x512_40k_ade20k'),
    ),
}


@pytest.mark.parametrize('zoo', ZOO)
def test_repmlps_take_the_zoos_file_and_no_other(zoo):
    file = of_mmpretrain(zoo).state_dict()
    for name in ZOO[zoo]:
        model = build_on_meta(load_config(name))
        report = model.backbone.check_fit(part_of(file, 'backbone.'), 'zoo.pth')
        assert not report.left and set(report.new) <= {'output norms', 'counters of batches'}
    classifier = build_on_meta(load_config(ZOO[zoo][0]))
    assert compare(classifier, file, 'zoo.pth', complete=True).startswith('loaded')
    other = build_on_meta(load_config(next(names[0] for z, names in ZOO.items() if z != zoo)))
    with pytest.raises(CheckpointError, match='another shape'):
        compare(other, file, 'zoo.pth', complete=True)


@pytest.mark.slow
@pytest.mark.parametrize('zoo', ZOO)
def test_repmlps_compute_what_mmpretrain_does(zoo, tmp_path):
    """Features, those in deploy mode, and the classifier's logits, with random statistics."""
    theirs = of_mmpretrain(zoo, 'cpu')
    side = theirs.backbone.img_size[0]
    norms = [module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.8, 1.2)
    with torch.no_grad():
        theirs.train()(torch.randn(4, 3, side, side), mode='tensor')
        for norm in norms:  # random, but of the maps' order, or values grow to millions
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    theirs.eval()
    file = tmp_path / 'zoo.pth'
    torch.save(dict(state_dict=theirs.state_dict()), file)
    image = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected, logits = theirs.backbone(image)[-1], theirs(image, mode='tensor')
    for name in ZOO[zoo]:
        cfg = load_config(name)
        init_default_scope(require_toolbox(cfg))
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(file))
        backbone = MODELS.build(cfg.model.backbone)
        backbone.init_weights()
        # Output norms of a detector are new: the last one is the zoo's, as it has the same name.
        with torch.no_grad():
            got = backbone.eval()(image)[-1]
            assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
            folded = to_deploy(backbone)(image)[-1]
        assert (folded - got).abs().max() <= 1e-5 * got.abs().max()
    cfg = load_config(ZOO[zoo][0])
    init_default_scope('mmpretrain')
    ours = MODELS.build(cfg.model).eval()
    load_checkpoint(ours, str(file), strict=True)
    with torch.no_grad():
        got = ours(image, mode='tensor')
    assert torch.allclose(got, logits, rtol=1e-4, atol=1e-5 * logits.abs().max())


@pytest.mark.parametrize('name', [n for n in CONFIGS if n.endswith('_in1k')])
def test_a_training_on_imagenet_does_not_start_from_its_own_result(name):
    cfg = load_config(name)
    assert not cfg.model.backbone.get('init_cfg') and cfg.load_from is None


@pytest.mark.parametrize(
    'name', [n for n in CONFIGS if re.search('mpvit_.*(_1x_coco|160k_ade20k)', n)]
)
def test_mpvit_has_its_weights_and_widths(name):
    model = load_config(name).model
    backbone = model.backbone
    assert backbone.norm_cfg.type == 'SyncBNOrBN' and backbone.arch in name
    assert backbone.init_cfg.checkpoint.endswith(f'/mpvit_{backbone.arch}.pth')
    widths = list(MPViT.arch_zoo[backbone.arch]['widths'])
    levels = [*widths[1:], widths[-1]]
    part = model.decode_head if 'upernet' in name else model.neck
    assert part.in_channels == levels[-len(backbone.get('out_indices', levels)) :]
    if 'upernet' in name:
        assert model.auxiliary_head.in_channels == levels[model.auxiliary_head.in_index]
