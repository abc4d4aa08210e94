"""MPViT's and RepMLP's configs: sizes and settings; steps are in test_all_configs."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch.utils.flop_counter import FlopCounterMode

from cyclemlp_mm.analysis import build_on_meta
from cyclemlp_mm.engine import configs_dir, load_config
from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import MPViT
from cyclemlp_mm.weights.unwrap import part_of

DROP_PATH = dict(tiny=0.1, xsmall=0.1, small=0.2, base=0.4)


@pytest.mark.parametrize('size, quoted', [('small', 943e9), ('base', 1185e9)])
def test_upernets_multiply_adds_are_the_published_ones(size, quoted):
    model = build_on_meta(load_config(f'upernet_mpvit_{size}_512x512_160k_ade20k'))
    image = torch.empty(1, 3, 512, 2048, device='meta')  # the size that mmseg's zoo counts at
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image, mode='tensor')
    assert counter.get_total_flops() / 2 == pytest.approx(quoted, rel=0.01)


@pytest.mark.parametrize('head, quoted', [('retinanet', 17), ('mask_rcnn', 28)])
def test_the_sizes_quoted_of_tiny_are_those_of_ratio_4(head, quoted):
    """The published weights have ratio 2: a config of ratio 4 could not load them."""
    cfg = load_config(f'{head}_mpvit_tiny_fpn_1x_coco')
    cfg.model.backbone.update(arch=dict(MPViT.arch_zoo['tiny'], mlp_ratio=4))
    assert round(sum(p.numel() for p in build_on_meta(cfg).parameters()) / 1e6) == quoted


CONFIGS = [path.stem for path in configs_dir().glob('*.py')]


def of_mmpretrain(name):
    """The state dict, without numbers, of a published RepMLPNet that mmpretrain builds."""
    mmpretrain = pytest.importorskip('mmpretrain')
    configs = Path(mmpretrain.__file__).parent / '.mim/configs/repmlp'
    cfg = Config.fromfile(configs / f'{name}.py')
    init_default_scope('mmpretrain')
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model).state_dict()


@pytest.mark.parametrize(
    'name', ['repmlp_b_in1k', 'retinanet_repmlp_b_fpn_1x_coco', 'fpn_repmlp_b_512x512_40k_ade20k']
)
def test_repmlps_take_the_zoos_file(name):
    file = of_mmpretrain('repmlp-base_8xb64_in1k')
    model = build_on_meta(load_config(name))
    report = model.backbone.check_fit(part_of(file, 'backbone.'), 'zoo.pth')
    assert not report.left and set(report.new) <= {'output norms', 'counters of batches'}
    if name == 'repmlp_b_in1k':
        assert compare(model, file, 'zoo.pth', complete=True).startswith('loaded')


def test_repmlp_for_256_px():
    file = of_mmpretrain('repmlp-base_8xb64_in1k-256px')
    cfg = load_config('repmlp_b_in1k', {'model.backbone.img_size': 256})
    compare(build_on_meta(cfg), file, 'zoo.pth', complete=True)
    with pytest.raises(CheckpointError, match='another shape'):
        compare(build_on_meta(load_config('repmlp_b_in1k')), file, 'zoo.pth', complete=True)


@pytest.mark.parametrize('name', [n for n in CONFIGS if n.endswith('_in1k')])
def test_a_training_on_imagenet_does_not_start_from_its_own_result(name):
    cfg = load_config(name)
    assert not cfg.model.backbone.get('init_cfg') and cfg.load_from is None


@pytest.mark.parametrize(
    'name', [n for n in CONFIGS if re.search('mpvit_.*(_1x_coco|160k_ade20k|_in1k)', n)]
)
def test_mpvit_settings_are_the_published_ones(name):
    cfg = load_config(name)
    backbone, optimizer = cfg.model.backbone, cfg.optim_wrapper.optimizer
    assert backbone.type == 'MPViT' and backbone.arch in name
    if name.endswith('in1k'):
        return
    assert backbone.norm_cfg.type == 'SyncBNOrBN'
    assert backbone.drop_path_rate == DROP_PATH[backbone.arch]
    assert backbone.init_cfg.checkpoint.endswith(f'/mpvit_{backbone.arch}.pth')
    assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
    widths = list(MPViT.arch_zoo[backbone.arch]['widths'])
    levels = [*widths[1:], widths[-1]]
    warm_up, recipe = cfg.param_scheduler[0], (optimizer.type, optimizer.lr, optimizer.weight_decay)
    if 'upernet' in name:
        assert recipe == ('AdamW', 6e-5, 0.01)
        assert (warm_up.end, optimizer.lr * warm_up.start_factor) == (1500, pytest.approx(1e-6))
        assert cfg.model.decode_head.in_channels == levels
        assert cfg.model.auxiliary_head.in_channels == levels[cfg.model.auxiliary_head.in_index]
        assert cfg.model.auxiliary_head.in_index == 2
    else:
        assert recipe == ('AdamW', 1e-4, 0.05)
        assert (warm_up.end, warm_up.start_factor) == (1000, 0.01)
        assert cfg.model.neck.in_channels == levels[-len(backbone.out_indices) :]
