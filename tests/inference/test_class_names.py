"""Names of a checkpoint that has none: the config's, never COCO's or those of Cityscapes."""

import pytest
import torch

from cyclemlp_mm.datasets.shapes import CLASSES
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.inference import Predictor


def bare(model, folder, wrapped=True, **content):
    config, checkpoint = model
    state_dict = torch.load(checkpoint, weights_only=False)['state_dict']
    content = {'state_dict': state_dict, **content} if wrapped else state_dict
    torch.save(content, folder / 'bare.pth')
    return str(config), str(folder / 'bare.pth')


def changed(config, folder, metainfo):
    cfg = load_config(config)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        if metainfo is None:
            loader.dataset.pop('metainfo')
        else:
            loader.dataset.metainfo = metainfo
    cfg.dump(folder / 'changed.py')
    return str(folder / 'changed.py')


WITHOUT = [dict(wrapped=False), dict(meta={}), dict(meta=3), dict(meta=dict(dataset_meta=[1]))]
WITHOUT += [dict(meta=dict(dataset_meta=dict(classes=7), CLASSES=[1, 2]))]


@pytest.mark.parametrize('content', WITHOUT)
def test_a_detectors_config_names_them(content, detector, tmp_path, log_lines):
    predictor = Predictor(*bare(detector, tmp_path, **content), device='cpu')
    assert predictor.classes == tuple(CLASSES)
    assert any('bare.pth: it has no class names; those of the config' in line for line in log_lines)


def test_a_segmentors_config_names_them(segmentor, tmp_path):
    config, checkpoint = bare(segmentor, tmp_path)
    names = dict(classes=('sky', 'road', 'tree'), palette=[[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    predictor = Predictor(changed(config, tmp_path, names), checkpoint, device='cpu')
    assert predictor.classes == ('sky', 'road', 'tree')
    assert predictor.palette == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    with pytest.raises(UserError, match=r'has 3 \(model\.decode_head\.num_classes\)'):
        Predictor(config, checkpoint, device='cpu')  # ADE20K's


def test_names_for_another_number_of_classes(detector, tmp_path):
    config, checkpoint = bare(detector, tmp_path)
    for metainfo, found in ((None, '80'), (dict(classes=('a', 'b')), '2')):
        with pytest.raises(UserError, match=rf'are {found}, but the model has 4.*metainfo'):
            Predictor(changed(config, tmp_path, metainfo), checkpoint, device='cpu')


def test_names_of_the_file(detector, tmp_path):
    names = ('a', 'b', 'c', 'd')
    for meta in (dict(dataset_meta=dict(classes=names)), dict(CLASSES=names)):
        predictor = Predictor(*bare(detector, tmp_path, meta=meta), device='cpu')
        assert predictor.classes == names
    with pytest.raises(UserError, match='its class names are 3, but the model has 4'):
        meta = dict(dataset_meta=dict(classes=names[1:]))
        Predictor(*bare(detector, tmp_path, meta=meta), device='cpu')
