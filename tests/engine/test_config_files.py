import sys

import pytest
from mmengine.config import Config

from cyclemlp_mm.engine import find_config, load_config, require_toolbox
from cyclemlp_mm.errors import MissingFileError, MissingToolboxError, UserError


def test_names_and_paths_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = find_config('retinanet_cyclemlp_b2_fpn_1x_coco')
    assert path == find_config('configs/retinanet_cyclemlp_b2_fpn_1x_coco.py')
    own = tmp_path / 'own.py'
    own.write_text(f"_base_ = ['{path}']\nmodel = dict(bbox_head=dict(num_classes=3))\n")
    assert load_config('own.py').model.bbox_head.num_classes == 3
    with pytest.raises(MissingFileError, match='Did you mean upernet_cyclemlp_t'):
        find_config('upernet_cyclemlp_t_512x512_160k_ade20')
    # A changed copy whose path is misspelt is not replaced by the shipped config.
    (tmp_path / 'configs').mkdir()
    for name in ('mine/cyclemlp_demo.py', '/nowhere/cyclemlp_demo.py', 'configs/cyclemlp_demo.py'):
        with pytest.raises(MissingFileError, match='Did you mean cyclemlp_demo'):
            find_config(name)


@pytest.mark.parametrize(
    'key, said',
    [
        ('train_dataloder.batch_size', "has 'train_dataloder'.* Did you mean train_dataloader"),
        ('lod_from', "has 'lod_from'.* Did you mean load_from"),
        ('quite_new', "mmengine has 'quite_new', so that it would change nothing"),
        ('max_epochs', 'Did you mean train_cfg.max_epochs'),
        ('optim_wrapper.optimiser.lr', "have 'optimiser'.* Did you mean optimizer"),
        ('train_dataloader.dataset.pipeline.1.with_box.x', "have 'with_box'.* mean with_bbox"),
        ('model.test_cfg.scor_thr', "have 'scor_thr'.* mean score_thr"),
        ('model.test_cfg.max_per_image', 'mean max_per_img'),
        ('model.test_cfg.nms.iou_threshhold', 'mean iou_threshold'),
        ('data_preprocessor.mean', r'model has its own.*mean model\.data_preprocessor\.mean'),
    ],
)
def test_a_misspelt_option_is_refused(key, said):
    with pytest.raises(UserError, match=f'^--cfg-options {key}: .*{said}'):
        load_config('retinanet_cyclemlp_b1_fpn_1x_coco', {key: 1})


@pytest.mark.parametrize(
    'key, value',
    [
        ('auto_scale_lr.enable', 'no'),
        ('resume', 'maybe'),
        ('train_dataloader.sampler.shuffle', 'off'),
        ('randomness.deterministic', 'yes'),
        ('default_hooks.checkpoint.save_optimizer', 'no'),
    ],
)
def test_a_text_is_no_boolean(key, value):
    with pytest.raises(UserError, match=f'{key}={value}: .* count as true. Write True or False'):
        load_config('retinanet_cyclemlp_b1_fpn_1x_coco', {key: value})


@pytest.mark.parametrize(
    'key',
    [
        'load_from',
        'randomness.seed',
        'max_bad_fraction',
        'runner_type',
        'strategy.type',
        'train_dataloader.dataset.metainfo.classes',
        'train_dataloader.dataset.indices',
        'model.backbone.init_cfg.checkpoint',
        'train_dataloader.dataset.pipeline.2.scale',
        'optim_wrapper.paramwise_cfg.norm_decay_mult',
        'optim_wrapper.dtype',  # next to type
        'train_dataloader.batch_sampler.times',
    ],
)
def test_options_that_a_config_may_lack(key):
    cfg = load_config('retinanet_cyclemlp_b1_fpn_1x_coco', {key: 'new'})
    node = cfg
    for part in key.split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node == 'new'


@pytest.mark.parametrize(
    'code, said',
    [
        ('class A(None):\n    pass\n', r'\(TypeError: .*tools/doctor\.py'),
        (None, r'cyclemlp_mm\[det\]'),
    ],
)
def test_a_toolbox_that_cannot_be_imported(code, said, tmp_path, monkeypatch):
    """A package next to it of another version: the error may be of any kind."""
    for name in [n for n in sys.modules if n.split('.')[0] == 'mmdet']:
        monkeypatch.delitem(sys.modules, name)
    if code is None:
        monkeypatch.setitem(sys.modules, 'mmdet', None)
    else:
        (tmp_path / 'mmdet').mkdir()
        (tmp_path / 'mmdet' / '__init__.py').write_text('')
        (tmp_path / 'mmdet' / 'models.py').write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingToolboxError, match=said):
        require_toolbox(Config(dict(default_scope='mmdet')))
    for name in [n for n in sys.modules if n.split('.')[0] == 'mmdet']:
        del sys.modules[name]
    with pytest.raises(UserError, match='default_scope=None'):
        require_toolbox(Config({}))
