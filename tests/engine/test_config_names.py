"""Our configs by name in mmdet's and mmseg's own inferencers."""

import pytest
from mmengine.infer import BaseInferencer

from cyclemlp_mm.engine import register_config_names
from cyclemlp_mm.errors import MissingFileError


def test_mmdet_takes_a_name(tmp_path, monkeypatch):
    from mmdet.apis import DetInferencer

    monkeypatch.chdir(tmp_path)  # no config lies here
    inferencer = DetInferencer('retinanet_cyclemlp_demo', device='cpu')
    assert inferencer.cfg.model.backbone.type == 'CycleMLP'
    assert inferencer.cfg.custom_imports.imports == ['cyclemlp_mm']


def test_mmseg_takes_a_name(tmp_path, monkeypatch):
    from mmseg.apis import MMSegInferencer

    monkeypatch.chdir(tmp_path)
    inferencer = MMSegInferencer('fpn_cyclemlp_b1_256x256_600i_small', device='cpu')
    assert inferencer.cfg.model.decode_head.num_classes == 150


def test_other_names_go_to_the_toolbox():
    from mmdet.apis import DetInferencer

    with pytest.raises(MissingFileError, match='Did you mean retinanet_cyclemlp_b1'):
        DetInferencer('retinanet_cyclemlp_b1_fpn_1x_cocoa', device='cpu')
    with pytest.raises(ValueError, match='Cannot find model: no_such_model in mmdet'):
        DetInferencer('no_such_model', device='cpu')


def test_registering_twice_wraps_once():
    before = BaseInferencer._load_model_from_metafile
    register_config_names()
    assert BaseInferencer._load_model_from_metafile is before
