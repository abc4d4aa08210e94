"""MPViT's and RepMLP's configs: sizes and settings; steps are in test_all_configs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch.utils.flop_counter import FlopCounterMode

from cyclemlp_mm.analysis import build_on_meta
from cyclemlp_mm.engine import configs_dir, load_config, require_toolbox
from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import MPViT
from cyclemlp_mm.weights.unwrap import part_of

SIZES = ('tiny', 'xsmall', 'small', 'base')

# Parameters in millions, quoted: MPViT's model zoo; the classifiers to the last parameter. RepMLP's
# detector and segmentor were never published: ours; its classifier is mmpretrain's.
# The zoo gives 17 and 28 for the detectors of T. That is T with MLPs of ratio 4; its published
# weights have ratio 2, and a config that could not load them would be of no use: QUOTED_OF_TINY.
DENSE = {
    **{f'retinanet_mpvit_{a}_fpn_1x_coco': m for a, m in zip(SIZES, (15, 20, 32, 85), strict=True)},
    **{f'mask_rcnn_mpvit_{a}_fpn_1x_coco': m for a, m in zip(SIZES, (26, 30, 43, 95), strict=True)},
    'upernet_mpvit_small_512x512_160k_ade20k': 52,
    'upernet_mpvit_base_512x512_160k_ade20k': 105,
}
QUOTED_OF_TINY = {'retinanet_mpvit_tiny_fpn_1x_coco': 17, 'mask_rcnn_mpvit_tiny_fpn_1x_coco': 28}
CLASSIFIERS = {
    'mpvit_tiny_in1k': 5_843_736,
    'mpvit_xsmall_in1k': 10_573_448,
    'mpvit_small_in1k': 22_892_400,
    'mpvit_base_in1k': 74_845_976,
}
REPMLP = {
    'retinanet_repmlp_b_fpn_1x_coco': 78.4,
    'fpn_repmlp_b_512x512_40k_ade20k': 71.8,
    'repmlp_b_in1k': 68.24,
}
DROP_PATH = dict(tiny=0.1, xsmall=0.1, small=0.2, base=0.4)


def parameters(name, **backbone):
    cfg = load_config(name)
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.update(init_cfg=None, **backbone)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('name', DENSE)
def test_mpvit_detectors_and_segmentors_have_the_published_sizes(name):
    millions = parameters(name) / 1e6
    assert round(millions) == DENSE[name], f'{millions:.3f}M'


@pytest.mark.parametrize('size, quoted', [('small', 943e9), ('base', 1185e9)])
def test_upernets_multiply_adds_are_the_published_ones(size, quoted):
    cfg = load_config(f'upernet_mpvit_{size}_512x512_160k_ade20k')
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
        image = torch.empty(1, 3, 512, 2048)  # the size that mmseg's zoo counts at
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image, mode='tensor')
    assert counter.get_total_flops() / 2 == pytest.approx(quoted, rel=0.01)


@pytest.mark.parametrize('name', QUOTED_OF_TINY)
def test_the_sizes_quoted_of_tiny_are_those_of_ratio_4(name):
    millions = parameters(name, arch=dict(MPViT.arch_zoo['tiny'], mlp_ratio=4)) / 1e6
    assert round(millions) == QUOTED_OF_TINY[name], f'{millions:.3f}M'


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_mpvit_classifiers_have_the_published_sizes(name):
    assert parameters(name) == CLASSIFIERS[name]


def mmpretrains(name):
    """A published RepMLPNet, as mmpretrain's own config builds it, without numbers."""
    mmpretrain = pytest.importorskip('mmpretrain')
    configs = Path(mmpretrain.__file__).parent / '.mim/configs/repmlp'
    cfg = Config.fromfile(configs / f'{name}.py')
    init_default_scope('mmpretrain')
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', REPMLP)
def test_repmlps_take_the_zoos_file(name):
    file = mmpretrains('repmlp-base_8xb64_in1k').state_dict()
    model = build_on_meta(load_config(name))
    report = model.backbone.check_fit(part_of(file, 'backbone.'), 'zoo.pth')
    assert not report.left and set(report.new) <= {'output norms', 'counters of batches'}
    if name == 'repmlp_b_in1k':
        assert compare(model, file, 'zoo.pth', complete=True).startswith('loaded')
        assert sum(p.numel() for p in model.parameters()) == 68_242_712  # the zoo's


def test_repmlp_for_256_px():
    file = mmpretrains('repmlp-base_8xb64_in1k-256px').state_dict()
    cfg = load_config('repmlp_b_in1k', {'model.backbone.img_size': 256})
    compare(build_on_meta(cfg), file, 'zoo.pth', complete=True)
    with pytest.raises(CheckpointError, match='another shape'):
        compare(build_on_meta(load_config('repmlp_b_in1k')), file, 'zoo.pth', complete=True)


@pytest.mark.parametrize('name', [p.stem for p in configs_dir().glob('*_in1k.py')])
def test_a_training_on_imagenet_does_not_start_from_its_own_result(name):
    cfg = load_config(name)
    assert not cfg.model.backbone.get('init_cfg') and cfg.load_from is None


@pytest.mark.parametrize('name', REPMLP)
def test_repmlp_sizes(name):
    millions = parameters(name) / 1e6
    assert abs(millions - REPMLP[name]) <= 0.06, f'{millions:.3f}M'


@pytest.mark.parametrize('name', [*DENSE, *CLASSIFIERS])
def test_mpvit_settings_are_the_published_ones(name):
    cfg = load_config(name)
    backbone, optimizer = cfg.model.backbone, cfg.optim_wrapper.optimizer
    assert backbone.type == 'MPViT' and backbone.arch in name
    if name in CLASSIFIERS:
        return
    assert backbone.norm_cfg.type == 'SyncBNOrBN'
    assert backbone.drop_path_rate == DROP_PATH[backbone.arch]
    assert backbone.init_cfg.checkpoint.endswith(f'/mpvit_{backbone.arch}.pth')
    assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
    widths = list(MPViT.arch_zoo[backbone.arch]['widths'])
    levels = [*widths[1:], widths[-1]]
    warm_up = cfg.param_scheduler[0]
    if 'upernet' in name:
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
        assert (warm_up.end, optimizer.lr * warm_up.start_factor) == (1500, pytest.approx(1e-6))
        assert cfg.model.decode_head.in_channels == levels
        assert cfg.model.auxiliary_head.in_channels == levels[2]
        assert cfg.model.auxiliary_head.in_index == 2
    else:
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
        assert (warm_up.end, warm_up.start_factor) == (1000, 0.01)
        assert cfg.model.neck.in_channels == levels[-len(backbone.out_indices) :]
