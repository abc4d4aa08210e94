"""What the check says about model, schedule, sharding and work dir."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from toy_models import ARCH

from cyclemlp_mm.engine import configs_dir, load_config, require_toolbox
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.preflight import Report
from cyclemlp_mm.preflight.model import (
    check_batch,
    check_custom_keys,
    check_ignore_index,
    check_layer_decay,
    check_levels,
    check_num_classes,
    check_sharding,
    check_work_dir,
)

WIDTHS = list(ARCH['widths'])
HEAD = dict(in_channels=WIDTHS[3], channels=8, num_classes=3, norm_cfg=dict(type='BN'))
SEGMENTOR = 'fpn_cyclemlp_b1_256x256_600i_small'


def findings(check, *arguments):
    report = Report()
    check(report, *arguments)
    return [str(finding) for finding in report.findings]


def test_equal_findings_are_reported_once():
    """Training and validation may miss the same folder."""
    report = Report()
    for what in ('is missing', 'is missing', 'is empty'):
        report.error('data/coco', what, 'Put the data there')
    report.warning('data/coco', 'is missing', 'Put the data there')
    assert len(report.of('error')) == 2 and len(report.of('warning')) == 1


def of_model(check, cfg):
    init_default_scope(require_toolbox(cfg))
    return findings(check, cfg, MODELS.build(cfg.model))


def segmentor(head, auxiliary=None, **backbone):
    cfg = load_config(SEGMENTOR)
    cfg.model.backbone = dict(type='CycleMLP', arch=ARCH, **backbone)
    cfg.model.neck, cfg.model.auxiliary_head = None, auxiliary
    cfg.model.decode_head = dict(HEAD, **head)
    return cfg


def pyramid(start):
    cfg = load_config('retinanet_cyclemlp_demo')
    cfg.model.backbone.update(arch=ARCH, out_indices=(0, 1, 2, 3))
    cfg.model.neck.update(in_channels=WIDTHS, start_level=start, num_outs=5)
    return cfg


def classifier():
    cfg = load_config('cyclemlp_demo')
    cfg.model.backbone.update(arch=ARCH, out_indices=(1, 3))
    cfg.model.head.in_channels = WIDTHS[3]
    return cfg


PSP, ASPP, FCN = (dict(type=name) for name in ('PSPHead', 'ASPPHead', 'FCNHead'))
AUXILIARY = dict(HEAD, type='FCNHead', in_channels=WIDTHS[2], in_index=2, num_convs=1)
NAMES = [p.stem for p in sorted(configs_dir().glob('*.py')) if 'demo' in p.stem or 'tiny' in p.stem]


@pytest.mark.parametrize(
    'cfg, idle, kept',
    [
        *(
            (lambda h=head: segmentor(h), 'level 0, level 1, level 2', '(3,)')
            for head in (PSP, FCN)
        ),
        (lambda: segmentor(dict(ASPP, in_index=3)), 'level 0, level 1, level 2', '(3,)'),
        (lambda: segmentor(dict(PSP, in_index=0), out_indices=(3,)), None, None),
        (lambda: segmentor(PSP, AUXILIARY), 'level 0, level 1:', '(2, 3)'),
        (lambda: segmentor(PSP, out_norms=False), None, None),  # nothing is idle without norms
        (lambda: pyramid(0), None, None),
        (lambda: pyramid(1), 'level 0:', '(1, 2, 3)'),
        (lambda: pyramid(2), 'level 0, level 1:', '(2, 3)'),
        (classifier, 'level 1:', '(3,)'),
        *((lambda n=name: load_config(n), None, None) for name in NAMES),
    ],
)
def test_levels_that_nobody_reads(cfg, idle, kept):
    found = of_model(check_levels, cfg())
    assert len(found) == (idle is not None), found
    assert idle is None or (idle in found[0] and f'Set it to {kept}' in found[0]), found


@pytest.mark.parametrize(
    'config, constructor, is_found',
    [
        (SEGMENTOR, 'LearningRateDecayOptimizerConstructor', True),
        ('retinanet_cyclemlp_demo', 'mmdet.LearningRateDecayOptimizerConstructor', True),
        ('cyclemlp_demo', 'mmseg.LayerDecayOptimizerConstructor', True),
        ('cyclemlp_demo', 'LearningRateDecayOptimWrapperConstructor', False),
        ('retinanet_cyclemlp_demo', None, False),
    ],
)
def test_constructors_of_layer_decay(config, constructor, is_found):
    cfg = load_config(config)
    cfg.optim_wrapper.constructor = constructor
    found = of_model(check_layer_decay, cfg)
    assert len(found) == is_found
    assert not is_found or ('ConvNeXt' in found[0] and 'layer_decay_rate' in found[0])


@pytest.mark.parametrize(
    'name, settings, said',
    [
        ('backbone', dict(lr_mult=0.1), None),
        ('backbnoe', dict(lr_mult=0.1), 'warning: {}: is in the name of no parameter'),
        ('neck', dict(lr_multi=0.1), 'error: {}: has lr_multi, but takes lr_mult and decay_mult'),
    ],
)
def test_parameters_with_settings_of_their_own(name, settings, said):
    cfg = load_config('retinanet_cyclemlp_demo')
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={name: settings})
    key = f'optim_wrapper.paramwise_cfg.custom_keys.{name}'
    found = of_model(check_custom_keys, cfg)
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said.format(key))


@pytest.mark.parametrize('number, is_found', [(15, True), (16, False)])
def test_no_batch_is_left(number, is_found):
    cfg = load_config('retinanet_cyclemlp_demo')
    cfg.train_dataloader.update(batch_size=16, drop_last=True)
    cfg.auto_scale_lr = None
    assert len(findings(check_batch, cfg, number)) == is_found
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', dataset={}, times=9)
    assert findings(check_batch, cfg, number) == []


@pytest.mark.parametrize(
    'key, loss, expected',
    [
        ('loss_decode', dict(class_weight=[1.0] * 3), None),
        ('loss_decode', dict(class_weight=[1.0] * 4), 'Write 3 weights'),
        ('loss_decode', dict(use_sigmoid=True, class_weight=[1.0, 2.0]), 'has 2 weights, but'),
        ('loss_decode', [{}, dict(class_weight=[1.0])], r'loss_decode[1].class_weight'),
        ('loss', dict(pos_weight=[1.0] * 4), 'loss.pos_weight: has 4 weights'),
        ('loss_cls', dict(class_weight=[1.0] * 4), None),  # one for the background
        ('loss_cls', dict(class_weight=[1.0] * 3), 'Write 4 weights'),
        ('loss_cls', dict(use_sigmoid=True, class_weight=[1.0] * 3), None),
        ('loss_decode', dict(class_weight='no_such_file.npy'), None),  # found when it is built
        ('loss_cls', dict(class_weight=1.0), None),
        ('loss_decode', dict(class_weight='{}/w.json'), 'has 2 weights'),
        ('loss_decode', dict(class_weight='{}/w.npy'), 'Write 3 weights'),
    ],
)
def test_class_weights(key, loss, expected, tmp_path):
    if isinstance(loss, dict) and isinstance(loss.get('class_weight'), str):
        pytest.importorskip('mmseg')
        np.save(tmp_path / 'w.npy', np.ones(2))
        (tmp_path / 'w.json').write_text('[1, 1]')
        loss = dict(class_weight=loss['class_weight'].format(tmp_path))
    others = dict(
        teacher=dict(head=dict(num_classes=9, loss=dict(class_weight=[1.0]))),
        rpn_head=dict(num_classes=1),
    )
    model = dict(head={'num_classes': 3, key: loss}, **others)
    found = findings(check_num_classes, Config(dict(model=model)), 3)
    assert [expected in one for one in found] == [True] * bool(expected)


LABELS = dict(type='CheckLabels', num_classes=3, ignore_label=11)


@pytest.mark.parametrize(
    'head, dataset, metric, expected',
    [
        (dict(ignore_index=11), dict(pipeline=[LABELS]), {}, 'model.decode_head.ignore_index'),
        (dict(ignore_index=0), dict(reduce_zero_label=True), {}, 'is 0, but reduce_zero_label'),
        ({}, dict(pipeline=[LABELS]), dict(ignore_index=11), 'val_evaluator.ignore_index'),
        (dict(loss_decode=[dict(ignore_label=3)]), dict(pipeline=[LABELS]), {}, 'ignore_label'),
        (dict(ignore_index=11), {}, {}, None),  # the labels' own
        (dict(ignore_index=255), dict(pipeline=[LABELS]), dict(ignore_index=255), None),
        (dict(ignore_index=None), dict(pipeline=[LABELS]), {}, None),
    ],
)
def test_the_label_that_is_ignored(head, dataset, metric, expected):
    cfg = dict(default_scope='mmseg', model=dict(decode_head=head), val_evaluator=metric)
    cfg.update(train_dataloader=dict(dataset=dataset))
    found = findings(check_ignore_index, Config(cfg))
    assert [expected in one for one in found] == [True] * bool(expected)


#: A checkpoint of a model of 2**20 parameters: weights and what Adam keeps of each, in MiB.
MIB = 12


@pytest.mark.parametrize(
    'free, kept, level',
    [(1.5, 1, 'error'), (2.5, 1, None), (2.5, 3, 'warning'), (4.5, 3, None), (2.5, -1, None)],
)
def test_space_for_checkpoints(tmp_path, monkeypatch, free, kept, level):
    usage = SimpleNamespace(free=int(free * MIB * 2**20))
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
    hook = dict(type='CheckpointHook', max_keep_ckpts=kept)
    cfg = Config(dict(work_dir=str(tmp_path / 'new'), default_hooks=dict(checkpoint=hook)))
    found = findings(check_work_dir, cfg, nn.Linear(2**10, 2**10, bias=False))
    what = f'{tmp_path}: {free * MIB:.0f} MiB are free; a checkpoint takes about {MIB} MiB'
    assert len(found) == (level is not None)
    assert not found or found[0].startswith(f'{level}: {what}')


FSDP = 'upernet_cyclemlp_b5_512x512_160k_ade20k_fsdp'


@pytest.mark.parametrize(
    'config, model, is_found',
    [
        (FSDP, lambda: CycleMLP('b1', out_indices=0), False),
        (FSDP, lambda: nn.Linear(2, 2), True),
        ('retinanet_cyclemlp_demo', lambda: nn.Linear(2, 2), False),
    ],
)
def test_layers_to_shard_that_are_not_in_the_model(config, model, is_found):
    found = findings(check_sharding, load_config(config), model())
    found = [text for text in found if text.startswith('warning')]
    assert len(found) == is_found
    assert not found or 'no layer of a class CycleBlock, EncoderLayer' in found[0]
