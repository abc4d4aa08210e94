"""Our configs and files in the APIs of mmdet, mmseg and mmpretrain."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from toy_models import ARCH

from cyclemlp_mm import config_path
from cyclemlp_mm.engine import configs_dir, load_config
from cyclemlp_mm.errors import MissingFileError

IMAGE = np.zeros((64, 64, 3), np.uint8)


def test_config_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('cyclemlp_demo', 'cyclemlp_demo.py'):
        (tmp_path / name).touch()  # a file of the same name here is not meant
        assert config_path(name) == str(configs_dir() / 'cyclemlp_demo.py')
    with pytest.raises(MissingFileError, match='Did you mean retinanet_cyclemlp_b1'):
        config_path('retinanet_cyclemlp_b1_fpn_1x_cocoa')


def test_mmdet_and_mmseg(detector, segmentor):
    from mmdet.apis import DetInferencer, init_detector
    from mmseg.apis import MMSegInferencer, init_model

    config = config_path('retinanet_cyclemlp_demo')
    cfg = Config.fromfile(config)
    cfg.model.backbone.arch = ARCH
    cfg.model.neck.in_channels = list(ARCH['widths'][1:])
    bias = init_detector(cfg, str(detector[1]), device='cpu').backbone.stem.proj.bias
    assert torch.equal(bias, torch.load(detector[1])['state_dict']['backbone.stem.proj.bias'])
    assert DetInferencer(config, device='cpu').cfg.model.backbone.type == 'CycleMLP'
    config = config_path('fpn_cyclemlp_b1_256x256_600i_small')
    cfg = Config.fromfile(config)
    cfg.model.backbone.arch = ARCH
    cfg.model.neck.in_channels = list(ARCH['widths'])
    cfg.model.decode_head.num_classes = 3
    init_model(cfg, str(segmentor[1]), device='cpu')
    assert MMSegInferencer(config, device='cpu').cfg.model.decode_head.num_classes == 150


@pytest.mark.parametrize('name', ['cyclemlp_demo', 'mpvit_tiny_in1k'])
def test_mmpretrain_by_path(name, tmp_path):
    mmpretrain = pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    model = mmpretrain.get_model(config_path(name))
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'x.pth')
    again = mmpretrain.get_model(config_path(name), pretrained=str(tmp_path / 'x.pth'))
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    inferencer = mmpretrain.ImageClassificationInferencer(
        config_path(name), pretrained=str(tmp_path / 'x.pth'), device='cpu'
    )
    scores = inferencer(IMAGE)[0]['pred_scores']
    batch = dict(inputs=[torch.from_numpy(IMAGE).permute(2, 0, 1)])
    if name == 'cyclemlp_demo':
        with torch.no_grad():
            image = again.data_preprocessor(batch, False)['inputs']
            logits = again.head(again.extract_feat(image))
        assert torch.allclose(logits.softmax(1)[0], torch.from_numpy(scores), atol=1e-6)


def test_mmpretrain_by_name():
    mmpretrain = pytest.importorskip('mmpretrain')
    from cyclemlp_mm.classification import add_to_mmpretrain

    init_default_scope('mmpretrain')
    add_to_mmpretrain()
    add_to_mmpretrain()
    for family, archs in (('cyclemlp', 8), ('mpvit', 4), ('repmlp_b', 2)):
        assert len(mmpretrain.list_models(f'{family}*_in1k')) == archs
    assert mmpretrain.list_models('*retinanet*cyclemlp*') == []
    assert type(mmpretrain.get_model('mpvit_tiny_in1k').backbone).__name__ == 'MPViT'
    assert 'pred_class' in mmpretrain.inference_model('mpvit_tiny_in1k', IMAGE, pretrained=False)


ROWS = {
    'CycleMLP': dict(arch=ARCH),
    'MPViT': dict(
        arch=dict(depths=(1, 2, 1, 1), widths=(8, 16, 24, 32), paths=(2, 2, 2, 2), mlp_ratio=1)
    ),
    'DenseRepMLPNet': dict(
        arch=dict(channels=[8, 16, 32, 64], depths=[1, 2, 1, 1], sharesets_nums=[1, 4, 8, 16]),
        img_size=64,
    ),
}
#: Parameters by their depth.
DEPTHS = {
    'CycleMLP': """
        0 stem.proj.weight  1 stages.0.0.norm1.weight  1 downsamples.1.proj.weight
        4 stages.3.0.mlp.fc1.bias  5 norm0.weight  5 norm3.bias""",
    'MPViT': """
        0 stem.0.conv.weight  0 stages.0.embeds.0.depthwise.weight
        1 stages.0.paths.1.position.weight  3 stages.1.paths.0.layers.1.norm1.weight
        3 stages.1.aggregate.conv.weight  3 stages.2.embeds.0.depthwise.weight
        5 stages.3.paths.0.layers.0.qkv.weight""",
    'DenseRepMLPNet': """
        0 patch_embed.projection.weight  1 stages.0.0.norm1.weight
        1 downsample_layers.0.conv.weight  3 stages.1.1.repmlp_block.fc3.weight
        4 downsample_layers.2.conv.weight  5 stages.3.0.norm1.bias  6 final_norm.weight
        6 norm1.weight""",
}


@pytest.mark.parametrize('family', ROWS)
def test_layer_depths(family):
    pytest.importorskip('mmpretrain')
    backbone = MODELS.build(dict(type=family, **ROWS[family]))
    number = sum(backbone.depths) + 2
    words = DEPTHS[family].split()
    for depth, name in zip(map(int, words[::2]), words[1::2], strict=True):
        assert name in dict(backbone.named_parameters()), name
        assert backbone.get_layer_depth(name) == (depth, number)
        assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, number)
    assert backbone.get_layer_depth('head.fc.weight', 'backbone.') == (number - 1, number)
    found = {backbone.get_layer_depth(name)[0] for name, _ in backbone.named_parameters()}
    assert found - {number - 1} == set(range(number - 1))


@pytest.mark.parametrize('family', ROWS)
def test_learning_rates_decay_from_layer_to_layer(family):
    pytest.importorskip('mmpretrain')
    from mmengine.optim import build_optim_wrapper

    cfg = load_config('cyclemlp_demo')
    init_default_scope('mmpretrain')
    cfg.model.backbone = dict(type=family, out_indices=(2,), **ROWS[family])  # without stage 3
    cfg.model.head.in_channels = 64
    model = MODELS.build(cfg.model)
    optim = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1))
    optim['constructor'] = 'LearningRateDecayOptimWrapperConstructor'
    optim['paramwise_cfg'] = dict(layer_decay_rate=0.5)
    optimizer = build_optim_wrapper(model, optim).optimizer
    groups = {group['param_name']: group['lr'] for group in optimizer.param_groups}
    depth = sum(model.backbone.depths[:3])
    assert groups['head.fc.weight'] == 1.0
    stem = next(lr for name, lr in groups.items() if name.startswith('backbone.'))
    assert stem == min(groups.values()) == 0.5 ** (depth + 1)
    assert len(groups) == len(list(model.parameters()))
