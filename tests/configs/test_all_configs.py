"""Every config: sizes, one training step, a gradient everywhere, one prediction."""

import re

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from paths import ROOT

from benchmarking.workloads import made_up_batch
from cyclemlp_mm.engine import check_loaded_weights, load_config, require_toolbox, skip_bad_images

CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
SIZES, MPVITS = ('b1', 'b2', 'b3', 'b4', 'b5', 't', 's', 'b'), ('tiny', 'xsmall', 'small', 'base')

# Parameters in millions. Quoted: CycleMLP's and MPViT's tables and model zoos. Not published, so
# ours: CycleMLP's T, S and B with UperNet and Mask R-CNN, all 3x, and RepMLP's detector and
# segmentor. MPViT's zoo gives 17 and 28 for the detectors of T: see
# test_the_sizes_quoted_of_tiny_are_those_of_ratio_4.
DENSE = {
    'retinanet_cyclemlp_{}_fpn_1x_coco': (24.9, 36.5, 48.1, 61.5, 85.9),
    'mask_rcnn_cyclemlp_{}_fpn_1x_coco': (34.8, 46.5, 58.0, 71.5, 95.3, 47.8, 69.1, 107.1),
    'fpn_cyclemlp_{}_512x512_40k_ade20k': (18.9, 30.6, 42.1, 55.6, 79.4),
    'upernet_cyclemlp_{}_512x512_160k_ade20k': (45.1, 56.8, 68.4, 81.8, 107.4, 59.9, 81.2, 121.2),
}
# Swin's published sizes with the same widths are 48, 69; 86, 107 and 145.
THREE_X = {
    'mask_rcnn_cyclemlp_{}_fpn_ms-3x_coco': (46.5, 47.8, 69.1, 107.1),
    'cascade_mask_rcnn_cyclemlp_{}_fpn_ms-3x_coco': (84.3, 85.6, 106.9, 144.9),
}
IN1K = {'cyclemlp_{}_in1k': (15.16, 26.80, 38.4, 51.8, 75.7, 28.27, 49.56, 87.71)}
MPVIT = {
    'retinanet_mpvit_{}_fpn_1x_coco': (15, 20, 32, 85),
    'mask_rcnn_mpvit_{}_fpn_1x_coco': (26, 30, 43, 95),
    'upernet_mpvit_{}_512x512_160k_ade20k': (None, None, 52, 105),
    'mpvit_{}_in1k': (5.843736, 10.573448, 22.892400, 74.845976),
}


def by_name(rows, sizes):
    """The figures of rows by the names of their configs."""
    pairs = [(name.format(s), f) for name, row in rows.items() for s, f in zip(sizes, row)]
    return {name: figure for name, figure in pairs if figure is not None}


PUBLISHED, CLASSIFIERS = by_name(DENSE, SIZES), by_name(IN1K, SIZES)
PUBLISHED |= by_name(THREE_X, ('b2', 't', 's', 'b'))
CLASSIFIERS['cyclemlp_b1_distill_in1k'] = 15.16  # without the teacher
PARAMETERS = {**PUBLISHED, **CLASSIFIERS, **by_name(MPVIT, MPVITS), 'repmlp_b_in1k': 68.242712}
PARAMETERS |= {'retinanet_repmlp_b_fpn_1x_coco': 78.4, 'fpn_repmlp_b_512x512_40k_ade20k': 71.8}
PARAMETERS |= {'repmlp_b_256px_in1k': 96.5}  # RepMLPNet's README


def build(name):
    cfg = load_config(name)
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None  # no network in tests
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)  # else small images are padded to the crop
    if 'roi_head' in cfg.model:  # few regions: else a step of Cascade R-CNN takes minutes
        stages = cfg.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 50
    model = MODELS.build(cfg.model)
    if 'teacher' in cfg.model:
        model.teacher.is_loaded = True  # with the random weights that it was built with
    return cfg, model


def test_the_experiments_are_there():
    assert len(PUBLISHED) == 34 and set(PARAMETERS) <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_parameters(name):
    """Every config is built; some have a figure, which is rounded, or exact with six digits."""
    with torch.device('meta'):
        _, model = build(name)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    figure = PARAMETERS.get(name, millions)
    digits = len(str(figure).partition('.')[2])
    assert abs(millions - figure) <= {0: 0.5, 1: 0.06, 2: 0.06}.get(digits, 1e-6), f'{millions}M'


# Other sizes of what is trained under another name.
SIZES_APART = re.compile(
    'cyclemlp_(b[2-5]|s|b)_|mpvit_(xsmall|small|base)_|256px|repmlp_b_(fpn|512)'
    '|^(mask_rcnn|upernet)_cyclemlp_t_|6e_small'
)
SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=SLOW if SIZES_APART.search(n) else []) for n in CONFIGS]
)
def test_trains_a_step_and_predicts(name):
    cfg, model = build(name)
    model.train()
    batch = made_up_batch(cfg, (2, 64, 64))
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert torch.isfinite(loss)
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    model.eval()
    with torch.no_grad():
        [result] = model.test_step({key: value[:1] for key, value in batch.items()})
    if cfg.default_scope == 'mmpretrain':
        assert result.pred_score.shape == (cfg.model.head.num_classes,)
    elif cfg.default_scope == 'mmseg':
        assert result.pred_sem_seg.data.shape == (1, 64, 64)
    else:
        assert result.pred_instances.bboxes.shape[1] == 4


@pytest.mark.parametrize('name', CONFIGS)
def test_follows_the_rules(name):
    text = (ROOT / 'configs' / f'{name}.py').read_text()
    bases = re.findall(r"'(_base_/[^']+|\w+\.py)'", text)
    assert bases and all((ROOT / 'configs' / base).is_file() for base in bases)
    assert '::' not in text and '_delete_' not in text
    cfg = load_config(name)
    modules = ['safe_loading', 'engine']
    modules += ['classification'] if 'teacher' in cfg.model else []
    assert cfg.custom_imports.imports == ['cyclemlp_mm', *(f'cyclemlp_mm.{m}' for m in modules)]
    assert cfg.custom_imports.allow_failed_imports is False
    assert cfg.auto_scale_lr.base_batch_size > 0
    assert cfg.get('find_unused_parameters') is None
    # So the toolboxes' own tools load as ours do.
    assert cfg.default_hooks.skip_bad_images.type == 'SkipBadImages'
    assert cfg.default_hooks.check_weights.type == 'CheckLoadedWeights'
    before = str(cfg.get('custom_hooks'))
    skip_bad_images(cfg)
    check_loaded_weights(cfg)
    assert str(cfg.get('custom_hooks')) == before


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_weights_are_those_of_the_arch(name):
    backbone = load_config(name).model.backbone
    file = {'t': 'tiny', 's': 'small', 'b': 'base'}.get(backbone.arch, backbone.arch.upper())
    assert backbone.init_cfg.checkpoint.endswith(f'/v0.1/CycleMLP_{file}.pth')


def test_no_weight_decay_on_norms_and_biases():
    from mmengine.optim import build_optim_wrapper

    cfg, model = build('cyclemlp_b1_in1k')
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.05 if parameter.dim() > 1 else 0.0), name
