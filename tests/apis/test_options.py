"""``--cfg-options``: what is typed wins over --data, or is refused with the reason."""

import pytest

from cyclemlp_mm.apis.arguments import parse
from cyclemlp_mm.apis.prepare import prepare_config
from cyclemlp_mm.apis.test import test as evaluate
from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.errors import UserError

DET, SEG = 'retinanet_cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small'


def parsed(*values):
    return parse('check', [DET, '--cfg-options', *values]).cfg_options


@pytest.mark.parametrize(
    'text, value',
    [
        ("dict(type='X',checkpoint='a b.pth')", dict(type='X', checkpoint='a b.pth')),
        ("{'a': True, 'b': [1.5]}", dict(a=True, b=[1.5])),
        ("('traffic light','car')", ('traffic light', 'car')),
        ('/data/my images/x.pth', '/data/my images/x.pth'),
        ("'a, b'", 'a, b'),
        # As mmengine reads them.
        ('(64,64)', (64, 64)),
        ('[a,b]', ['a', 'b']),
        ('1e-3', 1e-3),
        ('None', None),
        ('[(a,1),(b,2)]', [('a', 1), ('b', 2)]),
        ('', ''),
    ],
)
def test_values(text, value):
    found = parsed(f'a.b={text}')['a.b']
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    'text', ['dict(type=X)', "dict(type='X'", 'dict(**x)', '[dict(a=b)]', 'f(1,2)', '(1,2']
)
def test_values_that_cannot_be_read(text, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed(f'a.b={text}')
    assert caught.value.code == 2
    assert f'--cfg-options a.b: {text} cannot be read' in capsys.readouterr().err


@pytest.mark.parametrize(
    'line, message',
    [
        ('infer c p i --batch-size 0', '--batch-size: must be at least 1, but got 0'),
        ('infer c p i --score-thr nan', '--score-thr: must be 0 to 1, but got nan'),
        ('estimate c --size 16 64', '--size: must be at least 32, but got 16'),
        ('estimate c --gpu-memory 0', '--gpu-memory: must be 0.001 to 10000, but got 0'),
        ('visualize gallery c p --number x', "--number: invalid int value: 'x'"),
        ('infer c p i --tile 63', '--tile: must be at least 64, but got 63'),
        ('web --port 0', '--port: must be 1 to 65535, but got 0'),
    ],
)
def test_numbers_out_of_range(line, message, capsys):
    tool, *arguments = line.split()
    with pytest.raises(SystemExit):
        parse(tool, arguments)
    assert message in capsys.readouterr().err


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_coco(folder / 'coco', 4, 2, (64, 64))
    write_ade20k(folder / 'ade', 4, 2, (64, 64))
    return folder


def prepared(config, folder, *options):
    arguments = [config, '--data', str(folder), '--cfg-options', *options]
    return prepare_config(parse('check', arguments))


def test_what_is_typed_wins_over_data(data):
    pytest.importorskip('mmdet')
    cfg = prepared(
        DET,
        data / 'coco',
        'val_dataloader.dataset.ann_file=annotations/other.json',
        'val_evaluator.ann_file=other.json',
        'model.bbox_head.num_classes=7',
        'train_dataloader.dataset.metainfo.classes=("a","b")',
        'test_evaluator.topk=9',
    )
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/other.json'
    assert cfg.val_evaluator.ann_file == 'other.json'
    assert cfg.model.bbox_head.num_classes == 7
    assert cfg.train_dataloader.dataset.metainfo.classes == ('a', 'b')
    # And what was not typed follows from the folder.
    assert cfg.train_dataloader.dataset.data_root == str(data / 'coco')
    assert cfg.test_dataloader.dataset.ann_file == 'annotations/instances_val2017.json'


def test_what_is_typed_wins_over_data_in_segmentation(data):
    """--data adds a step to the pipeline: options count its steps as the config file does."""
    pytest.importorskip('mmseg')
    before = load_config(SEG).train_dataloader.dataset.pipeline
    cfg = prepared(
        SEG,
        data / 'ade',
        'train_dataloader.dataset.pipeline.3.crop_size=(32,32)',
        'model.decode_head.num_classes=9',
        'val_dataloader.dataset.img_suffix=.tif',
        'train_dataloader.dataset.reduce_zero_label=False',
    )
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps[before[3].type].crop_size == (32, 32) and 'CheckLabels' in steps
    assert sum('crop_size' in step for step in steps.values()) == 1
    assert cfg.model.decode_head.num_classes == 9
    assert cfg.val_dataloader.dataset.img_suffix == '.tif'
    assert cfg.train_dataloader.dataset.reduce_zero_label is False
    assert cfg.val_dataloader.dataset.reduce_zero_label is True


def test_an_evaluation_names_a_misspelt_setting(data):
    options = ['--cfg-options', 'test_evaluator.metrics_items=1']
    with pytest.raises(UserError, match=r'before the evaluation found 1 error:\s.*metric_items'):
        evaluate([DET, 'none.pth', '--data', str(data / 'coco'), *options])


def test_the_launcher_has_an_argument_of_its_own():
    with pytest.raises(UserError, match='--cfg-options launcher: give --launcher pytorch'):
        prepare_config(parse('check', [DET, '--cfg-options', 'launcher=pytorch']))


@pytest.mark.parametrize(
    'config, option, place',
    [
        (DET, 'max_epochs', 'train_cfg.max_epochs'),
        (DET, 'train_pipeline.2.scale', 'train_dataloader.dataset.pipeline.2.scale'),
        (DET, 'norm_cfg.num_groups', 'model.bbox_head.norm_cfg.num_groups'),
        ('retinanet_cyclemlp_b2_fpn_1x_coco', 'checkpoint', 'model.backbone.init_cfg.checkpoint'),
    ],
)
def test_a_variable_that_was_used_up_is_refused(config, option, place, tmp_path):
    """In the shipped config, and in one that mmengine wrote, which has no other text."""
    cfg = load_config(config)
    cfg.dump(tmp_path / 'dumped.py')
    for name in (config, str(tmp_path / 'dumped.py')):
        with pytest.raises(UserError, match=f'^--cfg-options {option}: .* change nothing') as said:
            load_config(name, {option: 3})
        assert place in str(said.value)


OWN = """
_base_ = '{base}'
custom_imports = dict(imports=['{module}'], allow_failed_imports=True)
my_limit = 3
"""


def test_a_key_that_code_of_the_user_may_read(tmp_path):
    base = load_config(DET).filename
    file = tmp_path / 'own.py'
    file.write_text(OWN.format(base=base, module='my_hooks'))
    assert load_config(str(file), {'my_limit': 5}).my_limit == 5
    with pytest.raises(UserError, match='variable of the config'):
        load_config(str(file), {'max_epochs': 1})
    file.write_text(OWN.format(base=base, module='cyclemlp_mm'))
    with pytest.raises(UserError, match=r'my_limit.* would change nothing'):
        load_config(str(file), {'my_limit': 5})
