"""Classes of checkpoint and data: by name in detection, else the same order or an error."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from toy_runs import NO_WORKERS, TINY_BACKBONE

from cyclemlp_mm.apis.check import check
from cyclemlp_mm.apis.test import test as run_test
from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco, write_image_folders
from cyclemlp_mm.engine import load_config, resume_training, use_own_data
from cyclemlp_mm.engine.config_data import take_class_order, trained_classes, use_checked_coco
from cyclemlp_mm.errors import UserError

DET, SEG, CLS = 'retinanet_cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small', 'cyclemlp_demo'
TOOLBOXES = {
    DET: ('mmdet', write_coco),
    SEG: ('mmseg', write_ade20k),
    CLS: ('mmpretrain', write_image_folders),
}
OPTIONS = {name: NO_WORKERS + (TINY_BACKBONE if name != SEG else []) for name in TOOLBOXES}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Reads a config for generated data in the folder 'data'."""
    monkeypatch.chdir(tmp_path)

    def load(name):
        toolbox, write = TOOLBOXES[name]
        pytest.importorskip(toolbox)
        if not (tmp_path / 'data').exists():
            write(tmp_path / 'data', 4, 4, (64, 64))
        options = dict(option.split('=', 1) for option in OPTIONS[name])
        cfg = load_config(name, {key: eval(value) for key, value in options.items()})
        return use_own_data(cfg, 'data')

    return load


@pytest.fixture
def checkpoint(config):
    """Saves a config's model before training as c.pth; returns the names of its data."""

    def save(name, **meta):
        cfg = config(name)
        init_default_scope(cfg.default_scope)
        meta['dataset_meta'] = dict(classes=cfg.train_dataloader.dataset.metainfo.classes)
        hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
        state = MODELS.build(cfg.model).state_dict()
        torch.save(dict(state_dict=state, meta=meta, optimizer={}, message_hub=hub), 'c.pth')
        return tuple(cfg.train_dataloader.dataset.metainfo.classes)

    return save


def edit(change):
    for file in Path('data/annotations').glob('*.json'):
        content = json.loads(file.read_text())
        change(content['categories'])
        file.write_text(json.dumps(content))


def argv(name, *arguments):
    return [name, *arguments, '--data', 'data', '--work-dir', 'wd', '--cfg-options', *OPTIONS[name]]


def test_detection_takes_the_order_of_the_checkpoint(config):
    cfg = config(DET)
    names = cfg.test_dataloader.dataset.metainfo.classes
    colours = dict(zip(names, cfg.test_dataloader.dataset.metainfo.palette))
    order = [names[i] for i in (2, 0, 3, 1)]
    [said] = take_class_order(cfg, order, 'a.pth')
    assert 'a.pth' in said and ', '.join(order) in said
    for phase in ('train', 'val', 'test'):
        metainfo = cfg[f'{phase}_dataloader'].dataset.metainfo
        assert list(metainfo.classes) == order
        assert dict(zip(metainfo.classes, metainfo.palette)) == colours
    for others in (order, ['zebra']):
        assert take_class_order(cfg, others, 'a.pth') == []


def test_names_of_a_checkpoint():
    """Of mmdet 3, of mmdet 2, and of files that hold something else there."""
    for meta in (dict(dataset_meta=dict(classes=('a', 'b'))), dict(CLASSES=['a', 'b'])):
        assert trained_classes(dict(meta=meta)) == ['a', 'b']
    for meta in (dict(dataset_meta=3), dict(dataset_meta=dict(classes='ab')), None):
        assert trained_classes(dict(meta=meta)) == []


def test_test_and_resuming_go_by_name_and_refuse_other_names(config, checkpoint, capsys):
    names = checkpoint(DET, epoch=0, iter=0)
    edit(lambda categories: categories.reverse())
    cfg = config(DET)
    assert list(cfg.val_dataloader.dataset.metainfo.classes) == list(names[::-1])
    assert 'classes are in the order of c.pth' in ' '.join(resume_training(cfg, 'c.pth'))
    assert cfg.val_dataloader.dataset.metainfo.classes == names
    run_test(argv(DET, 'c.pth'))
    assert f'classes are in the order of c.pth: {", ".join(names)}' in capsys.readouterr().out
    edit(lambda categories: categories[0].update(name='zebra'))
    for tool, arguments in ((run_test, ['c.pth']), (train, ['--resume', 'c.pth'])):
        with pytest.raises(UserError, match=r"c\.pth was trained with .*others: .*'zebra'"):
            tool(argv(DET, *arguments))
    assert 'Epoch(train)' not in capsys.readouterr().out


def test_classes_in_another_order_than_classes_txt(checkpoint):
    names = checkpoint(SEG)
    with pytest.raises(UserError, match=r'classes\.txt: names the labels as .* exchanged'):
        run_test(argv(SEG, 'c.pth', '--classes', *names[::-1]))


@pytest.mark.parametrize('name', TOOLBOXES)
def test_a_plain_runner_refuses_another_order(name, config, checkpoint):
    """As the toolboxes' own tools run a shipped config."""
    names = checkpoint(name)
    cfg = config(name)
    cfg.work_dir, cfg.load_from = 'wd', 'c.pth'
    cfg.test_dataloader.dataset.metainfo = dict(classes=names[::-1])
    with pytest.raises(UserError, match=r'c\.pth was trained with .* in another order'):
        Runner.from_cfg(cfg).test()


def test_another_file_for_the_loader_than_for_the_evaluator(config, checkpoint):
    checkpoint(DET)
    file = 'annotations/instances_train2017.json'
    cfg = config(DET)
    cfg.test_dataloader.dataset.update(ann_file=file, data_prefix=dict(img='train2017/'))
    cfg.dump('c.py')
    with pytest.raises(UserError, match=rf'test_evaluator\.ann_file=\S*{file}'):
        run_test(['c.py', 'c.pth', '--work-dir', 'wd'])
    with pytest.raises(UserError, match=r'test_evaluator\.ann_file: is .*val2017'):
        train(['c.py', '--work-dir', 'wd'])


@pytest.mark.parametrize(
    'name, phases, found',
    [
        (DET, ['val'], None),  # goes by name
        (SEG, ['val'], 'labels would not mean the same'),
        (SEG, ['train', 'val', 'test'], 'names would be exchanged'),
        (CLS, ['train', 'val', 'test'], 'names would be exchanged'),
    ],
)
def test_names_in_another_order(name, phases, found, config, capsys):
    cfg = config(name)
    for phase in phases:
        metainfo = cfg[f'{phase}_dataloader'].dataset.metainfo
        metainfo.classes = metainfo.classes[::-1]
    cfg.dump('c.py')
    with pytest.raises(UserError) if found else nullcontext():
        check(['c.py'])
    assert found is None or found in capsys.readouterr().out


def test_classes_in_a_file(config, tmp_path):
    """One name without a comma: tests/apis/test_bad_input.py."""
    cfg = config(SEG)
    metainfo = cfg.train_dataloader.dataset.metainfo
    (tmp_path / 'names.txt').write_text('\n'.join(metainfo.classes))
    metainfo.classes = 'names.txt'
    cfg.dump('c.py')
    check(['c.py'])


def test_classes_of_heads_only(config):
    """A teacher, a backbone and a head of proposals keep theirs."""
    config(DET)
    cfg = load_config('mask_rcnn_cyclemlp_b1_fpn_1x_coco')
    cfg.model.rpn_head.num_classes = 1
    cfg.model.teacher = dict(bbox_head=dict(num_classes=80))
    cfg.model.backbone.num_classes = 1000
    cfg.model.roi_head.bbox_head = [cfg.model.roi_head.bbox_head] * 2  # as of a cascade
    model = use_own_data(cfg, 'data').model
    assert [head.num_classes for head in model.roi_head.bbox_head] == [4, 4]
    assert model.roi_head.mask_head.num_classes == 4
    assert model.rpn_head.num_classes == 1 and model.teacher.bbox_head.num_classes == 80
    assert model.backbone.num_classes == 1000


@pytest.mark.parametrize('prefix', ['', 'mmdet.'])
def test_configs_of_before_read_the_checked_way(config, tmp_path, prefix):
    text = config(DET).pretty_text.replace('CheckedCoco', f'{prefix}Coco')
    assert f"'{prefix}CocoDataset'" in text and f"'{prefix}CocoMetric'" in text
    (tmp_path / 'c.py').write_text(text)
    cfg = load_config('c.py')
    assert cfg.train_dataloader.dataset.type == 'CheckedCocoDataset'
    assert cfg.test_evaluator.type == 'CheckedCocoMetric'
    cfg.val_dataloader.dataset.type = 'CityscapesDataset'  # by the order of the file
    cfg.val_evaluator.type = 'CocoMetric'
    use_checked_coco(cfg)
    assert cfg.val_evaluator.type == 'CocoMetric'
