"""Classes of checkpoint and data: by name in detection, else the same order or an error."""

import json
import shutil

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
from cyclemlp_mm.engine.config_data import (
    require_same_classes,
    take_class_order,
    trained_classes,
    use_checked_coco,
)
from cyclemlp_mm.errors import UserError

DET, SEG, CLS = 'retinanet_cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small', 'cyclemlp_demo'
OPTIONS = ['--cfg-options', *NO_WORKERS, *TINY_BACKBONE]


@pytest.fixture
def coco(tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    return write_coco(tmp_path / 'coco', 4, 2, (64, 64))


def edit(coco, change):
    for file in (coco / 'annotations').glob('*.json'):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


def checkpoint(name, data, path, **more):
    """Weights of a config's model before training, with the names of its data."""
    tiny = TINY_BACKBONE if name != SEG else []
    options = dict(option.split('=', 1) for option in tiny)
    cfg = load_config(name, {key: eval(value) for key, value in options.items()})
    use_own_data(cfg, data)
    init_default_scope(cfg.default_scope)
    classes = cfg.train_dataloader.dataset.metainfo.classes
    content = dict(
        state_dict=MODELS.build(cfg.model).state_dict(),
        meta=dict(dataset_meta=dict(classes=classes)),
        **more,
    )
    torch.save(content, path)
    return tuple(classes)


def test_detection_takes_the_order_of_the_checkpoint(coco):
    cfg = use_own_data(load_config(DET), coco)
    names = cfg.test_dataloader.dataset.metainfo.classes
    colours = dict(zip(names, cfg.test_dataloader.dataset.metainfo.palette))
    order = [names[i] for i in (2, 0, 3, 1)]
    [said] = take_class_order(cfg, order, 'a.pth')
    assert 'a.pth' in said and ', '.join(order) in said
    for phase in ('train', 'val', 'test'):
        metainfo = cfg[f'{phase}_dataloader'].dataset.metainfo
        assert list(metainfo.classes) == order
        assert dict(zip(metainfo.classes, metainfo.palette)) == colours
    assert take_class_order(cfg, order, 'a.pth') == []
    assert take_class_order(cfg, ['zebra'], 'a.pth') == []


@pytest.mark.parametrize(
    'trained, names, fits',
    [
        (['a', 'b'], ['a', 'b'], True),
        ([], ['a'], True),
        (['a'], [], True),
        (['a', 'b'], ['b', 'a'], False),
        (['a', 'b'], ['a', 'c'], False),
        (['a', 'b'], ['a'], False),
        (['a'], ['a', 'b'], False),
    ],
)
def test_labels_mean_the_same_or_it_is_an_error(trained, names, fits):
    if fits:
        require_same_classes(trained, names, 'f.pth')
    else:
        with pytest.raises(UserError, match=r'f\.pth was trained with the classes'):
            require_same_classes(trained, names, 'f.pth')


@pytest.mark.parametrize(
    'meta, names',
    [
        (dict(dataset_meta=dict(classes=('a', 'b'))), ['a', 'b']),
        (dict(CLASSES=['a']), ['a']),
        (dict(dataset_meta=3), []),
        (dict(dataset_meta=dict(classes='ab')), []),
        (None, []),
    ],
)
def test_names_of_a_checkpoint(meta, names):
    assert trained_classes(dict(meta=meta)) == names


def test_a_test_goes_by_name_and_refuses_other_names(coco, capsys):
    names = checkpoint(DET, coco, 'c.pth')
    edit(coco, lambda c: c['categories'].reverse())
    argv = [DET, 'c.pth', '--data', str(coco), '--work-dir', 'wd', *OPTIONS]
    run_test(argv)
    assert f'classes are in the order of c.pth: {", ".join(names)}' in capsys.readouterr().out
    edit(coco, lambda c: c['categories'][0].update(name='zebra'))
    with pytest.raises(UserError, match=r"c\.pth was trained with .*others: .*'zebra'"):
        run_test(argv)


def test_a_resumed_training_goes_by_name_and_refuses_other_names(coco, capsys):
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    names = checkpoint(DET, coco, 'c.pth', optimizer={}, message_hub=hub)
    content = torch.load('c.pth')
    content['meta'].update(epoch=0, iter=0)
    torch.save(content, 'c.pth')
    edit(coco, lambda c: c['categories'].reverse())
    cfg = use_own_data(load_config(DET), coco)
    assert list(cfg.val_dataloader.dataset.metainfo.classes) == list(names[::-1])
    assert 'classes are in the order of c.pth' in ' '.join(resume_training(cfg, 'c.pth'))
    assert cfg.val_dataloader.dataset.metainfo.classes == names
    edit(coco, lambda c: c['categories'][0].update(name='zebra'))
    with pytest.raises(UserError, match=r"c\.pth was trained with .*others: .*'zebra'"):
        train([DET, '--data', str(coco), '--work-dir', 'wd', '--resume', 'c.pth', *OPTIONS])
    assert 'Epoch(train)' not in capsys.readouterr().out


def test_segmentation_in_another_order_is_refused(tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    data = write_ade20k(tmp_path / 'ade', 2, 2, (64, 64))
    names = checkpoint(SEG, data, 'c.pth')
    argv = [SEG, 'c.pth', '--data', str(data), '--work-dir', 'wd', '--classes', *names[::-1]]
    with pytest.raises(UserError, match=r'classes\.txt: names the labels as .* exchanged'):
        run_test([*argv, '--cfg-options', *NO_WORKERS])
    (data / 'classes.txt').unlink()
    with pytest.raises(UserError, match=r'c\.pth was trained with .* in another order'):
        run_test([*argv, '--cfg-options', *NO_WORKERS])


def test_classification_with_other_folders_is_refused(tmp_path, monkeypatch):
    pytest.importorskip('mmpretrain')
    monkeypatch.chdir(tmp_path)
    data = write_image_folders(tmp_path / 'folders', 4, 4, (64, 64))
    checkpoint(CLS, data, 'c.pth')
    for split in ('train', 'val'):
        first = sorted((data / split).iterdir())[0]
        shutil.move(first, first.with_name('zebra'))
    with pytest.raises(UserError, match=r"c\.pth was trained with .*others: .*'zebra'"):
        run_test([CLS, 'c.pth', '--data', str(data), '--work-dir', 'wd', *OPTIONS])


@pytest.mark.parametrize(
    'name, write', [(DET, write_coco), (SEG, write_ade20k), (CLS, write_image_folders)]
)
def test_a_plain_runner_refuses_another_order(name, write, tmp_path, monkeypatch):
    """As the toolboxes' own tools run a shipped config."""
    pytest.importorskip({DET: 'mmdet', SEG: 'mmseg', CLS: 'mmpretrain'}[name])
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / 'data', 4, 4, (64, 64))
    names = checkpoint(name, data, 'c.pth')
    options = NO_WORKERS + (TINY_BACKBONE if name != SEG else [])
    cfg = load_config(name, {k: eval(v) for k, v in (o.split('=', 1) for o in options)})
    use_own_data(cfg, data)
    cfg.work_dir, cfg.load_from = 'wd', 'c.pth'
    cfg.test_dataloader.dataset.metainfo = dict(classes=names[::-1])
    with pytest.raises(UserError, match=r'c\.pth was trained with .* in another order'):
        Runner.from_cfg(cfg).test()


def test_another_file_for_the_loader_than_for_the_evaluator(coco):
    checkpoint(DET, coco, 'c.pth')
    file = 'annotations/instances_train2017.json'
    cfg = use_own_data(load_config(DET), coco)
    cfg.test_dataloader.dataset.update(ann_file=file, data_prefix=dict(img='train2017/'))
    cfg.dump('c.py')
    with pytest.raises(UserError, match=rf'test_evaluator\.ann_file=\S*{file}'):
        run_test(['c.py', 'c.pth', '--work-dir', 'wd'])
    with pytest.raises(UserError, match=r'test_evaluator\.ann_file: is .*val2017'):
        train(['c.py', '--work-dir', 'wd'])


@pytest.mark.parametrize(
    'name, classes, found',
    [
        (DET, lambda names: names[::-1], None),  # goes by name
        (DET, lambda names: ('zebra', *names[1:]), 'labels would not mean the same'),
        (SEG, lambda names: names[::-1], 'labels would not mean the same'),
    ],
)
def test_validation_with_other_classes_than_training(
    name, classes, found, tmp_path, monkeypatch, capsys
):
    pytest.importorskip('mmdet' if name == DET else 'mmseg')
    monkeypatch.chdir(tmp_path)
    data = (write_coco if name == DET else write_ade20k)(tmp_path / 'data', 4, 2, (64, 64))
    cfg = use_own_data(load_config(name), data)
    metainfo = cfg.val_dataloader.dataset.metainfo
    metainfo.classes = classes(metainfo.classes)
    cfg.dump('c.py')
    if found is None:
        assert not check(['c.py']).of('error')
    else:
        with pytest.raises(UserError):
            check(['c.py'])
        assert found in capsys.readouterr().out


def test_classes_of_heads_only(coco):
    """A teacher, a backbone and a head of proposals keep theirs."""
    cfg = load_config('mask_rcnn_cyclemlp_b1_fpn_1x_coco')
    cfg.model.rpn_head.num_classes = 1
    cfg.model.teacher = dict(bbox_head=dict(num_classes=80))
    cfg.model.backbone.num_classes = 1000
    cfg.model.roi_head.bbox_head = [cfg.model.roi_head.bbox_head] * 2  # as of a cascade
    model = use_own_data(cfg, coco).model
    assert [head.num_classes for head in model.roi_head.bbox_head] == [4, 4]
    assert model.roi_head.mask_head.num_classes == 4
    assert model.rpn_head.num_classes == 1 and model.teacher.bbox_head.num_classes == 80
    assert model.backbone.num_classes == 1000


@pytest.mark.parametrize('prefix', ['', 'mmdet.'])
def test_configs_of_before_read_the_checked_way(coco, prefix):
    cfg = use_own_data(load_config(DET), coco)
    text = cfg.pretty_text.replace('CheckedCoco', f'{prefix}Coco')
    assert f"'{prefix}CocoDataset'" in text and f"'{prefix}CocoMetric'" in text
    (coco / 'c.py').write_text(text)
    cfg = load_config(str(coco / 'c.py'))
    assert cfg.train_dataloader.dataset.type == 'CheckedCocoDataset'
    assert cfg.test_evaluator.type == 'CheckedCocoMetric'
    cfg.val_dataloader.dataset.type = 'CityscapesDataset'  # by the order of the file
    cfg.val_evaluator.type = 'CocoMetric'
    use_checked_coco(cfg)
    assert cfg.val_evaluator.type == 'CocoMetric'


@pytest.mark.parametrize('name, write', [(SEG, write_ade20k), (CLS, write_image_folders)])
def test_a_config_that_exchanges_the_names_of_the_data(name, write, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmseg' if name == SEG else 'mmpretrain')
    monkeypatch.chdir(tmp_path)
    cfg = use_own_data(load_config(name), write(tmp_path / 'data', 4, 4, (64, 64)))
    for phase in ('train', 'val', 'test'):
        metainfo = cfg[f'{phase}_dataloader'].dataset.metainfo
        metainfo.classes = metainfo.classes[::-1]
    cfg.dump('c.py')
    with pytest.raises(UserError):
        check(['c.py'])
    assert 'names would be exchanged' in capsys.readouterr().out


@pytest.mark.parametrize('name', [DET, SEG])
def test_one_class_without_a_comma(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmdet' if name == DET else 'mmseg')
    monkeypatch.chdir(tmp_path)
    data = (write_coco if name == DET else write_ade20k)(tmp_path / 'data', 4, 2, (64, 64))
    cfg = use_own_data(load_config(name), data)
    names = cfg.train_dataloader.dataset.metainfo.classes
    cfg.train_dataloader.dataset.metainfo.classes = 'circle'
    cfg.dump('c.py')
    with pytest.raises(UserError):
        check(['c.py'])
    assert "metainfo.classes: is the text 'circle'" in capsys.readouterr().out
    cfg.train_dataloader.dataset.metainfo.classes = 'names.txt'
    (tmp_path / 'names.txt').write_text('\n'.join(names))
    cfg.dump('c.py')
    check(['c.py'])
