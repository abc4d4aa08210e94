"""Our configs and files in the APIs of mmdet, mmseg and mmpretrain."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from toy_models import ARCH

from cyclemlp_mm import config_path
from cyclemlp_mm.engine import configs_dir
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


def test_mmpretrain_by_path(tmp_path):
    mmpretrain = pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    config = config_path('cyclemlp_demo')
    model = mmpretrain.get_model(config)
    file = str(tmp_path / 'x.pth')
    torch.save(dict(state_dict=model.state_dict(), meta={}), file)
    again = mmpretrain.get_model(config, pretrained=file)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    inferencer = mmpretrain.ImageClassificationInferencer(config, pretrained=file, device='cpu')
    scores = inferencer(IMAGE)[0]['pred_scores']
    batch = dict(inputs=[torch.from_numpy(IMAGE).permute(2, 0, 1)])
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
