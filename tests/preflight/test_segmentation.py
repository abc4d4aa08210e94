"""What only segmentors run into, found before training: crops, batches, norms over one value."""

import re

import pytest
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from toy_models import ARCH

from cyclemlp_mm.datasets.shapes import write_ade20k
from cyclemlp_mm.engine import load_config, use_own_data
from cyclemlp_mm.preflight.findings import Report
from cyclemlp_mm.preflight.segmentation import check_batch_of_one, check_crop, check_segmentation

pytest.importorskip('mmseg')
FPN, UPERNET = 'fpn_cyclemlp_b1_256x256_600i_small', 'upernet_cyclemlp_b1_512x512_160k_ade20k'


@pytest.fixture(autouse=True)
def _mmseg():
    init_default_scope('mmseg')


def said(check, *arguments):
    report = Report()
    check(report, *arguments)
    return [str(finding) for finding in report.findings]


@pytest.mark.parametrize(
    'canvas, text',
    [
        ((256, 256), None),
        ((512, 512), 'warning: .*is 512×512, but the pipeline gives 256×256: 75%'),
        ((256, 320), 'warning: .*20% of each'),
        ((224, 224), 'warning: .*smaller than the 256×256 of'),
    ],
)
def test_crop_and_canvas(canvas, text):
    cfg = load_config(FPN)
    cfg.model.data_preprocessor.size = canvas
    found = said(check_crop, cfg)
    if text is None:
        assert found == []
    else:
        assert len(found) == 1 and re.match(text, found[0])


@pytest.mark.parametrize(
    'step, is_found',
    [
        (dict(type='Resize', scale=(96, 48), keep_ratio=False), True),
        (dict(type='Resize', scale=256), False),
        (dict(type='Resize', scale=(96, 48), keep_ratio=True), False),  # of the image's own shape
        (dict(type='RandomResize', scale=(96, 48)), False),
    ],
)
def test_resize_and_canvas(step, is_found):
    cfg = load_config(FPN)
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[:] = [s for s in pipeline if s.type.startswith(('Load', 'Pack'))]
    pipeline.insert(2, step)
    found = said(check_crop, cfg)
    assert len(found) == is_found
    if is_found:
        assert 'the pipeline gives 48×96: 93% of each' in found[0]


def test_shipped_crops_fit():
    for name in (FPN, UPERNET, 'fpn_cyclemlp_b1_512x512_40k_ade20k'):
        assert said(check_crop, load_config(name)) == []


def model_of(name, batch, **head):
    cfg = load_config(name)
    cfg.train_dataloader.batch_size = batch
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    if 'type' in head:
        head['in_channels'] = ARCH['widths'][-1]
        cfg.model.decode_head = dict(
            in_index=3,
            channels=8,
            dropout_ratio=0,
            num_classes=4,
            align_corners=False,
            norm_cfg=dict(type='BN'),
            loss_decode=dict(type='CrossEntropyLoss'),
            **head,
        )
        cfg.model.auxiliary_head = cfg.model.neck = None
    else:
        cfg.model.decode_head.update(
            in_channels=list(ARCH['widths']), channels=8, norm_cfg=head['norm_cfg']
        )
        cfg.model.auxiliary_head.update(in_channels=ARCH['widths'][2], channels=8)
        cfg.model.auxiliary_head.norm_cfg = dict(type='BN')
    return cfg, MODELS.build(cfg.model)


@pytest.mark.parametrize(
    'batch, head, is_found',
    [
        (1, dict(norm_cfg=dict(type='BN')), True),
        (2, dict(norm_cfg=dict(type='BN')), False),
        (1, dict(norm_cfg=dict(type='GN', num_groups=4)), False),
        (1, dict(type='PSPHead', pool_scales=(1, 2)), True),
        (1, dict(type='ASPPHead', dilations=(1, 2)), True),
        (1, dict(type='FCNHead', num_convs=1), False),
    ],
)
def test_norms_over_one_value(batch, head, is_found):
    found = said(check_batch_of_one, *model_of(UPERNET, batch, **head))
    assert len(found) == is_found
    if is_found:
        assert found[0].startswith('error: train_dataloader.batch_size: is 1') and 'GN' in found[0]


@pytest.mark.parametrize(
    'number, loader, is_found',
    [
        (4, {}, True),
        (3, {}, False),
        (5, {}, False),
        (4, dict(drop_last=True), False),
        (4, dict(sampler=dict(type='InfiniteSampler')), False),
    ],
)
def test_norms_over_the_one_value_of_a_last_batch(number, loader, is_found):
    cfg, model = model_of(UPERNET, 3, norm_cfg=dict(type='BN'))
    cfg.train_dataloader.update(sampler=dict(type='DefaultSampler', shuffle=True))
    cfg.train_dataloader.update(loader)
    found = said(check_batch_of_one, cfg, model, number)
    assert len(found) == is_found
    if is_found:
        assert 'batch_size: is 3, and the last batch of 4 images is one image' in found[0]
        assert 'drop_last=True' in found[0]


@pytest.mark.parametrize(
    'batch, is_mixed, is_found', [(2, True, True), (1, True, False), (2, False, False)]
)
def test_batches_of_several_sizes_in_validation(tmp_path, batch, is_mixed, is_found):
    data = write_ade20k(tmp_path / 'data', 1, 3, (64, 48))
    if is_mixed:
        for part in ('images', 'annotations'):
            path = sorted((data / part / 'validation').iterdir())[1]
            Image.open(path).resize((96, 48), Image.NEAREST).save(path)
    cfg = use_own_data(load_config(FPN), data)
    cfg.test_dataloader.batch_size = batch
    dataset = cfg.val_dataloader.dataset
    found = said(check_segmentation, cfg, 'val', dataset, dataset.metainfo.classes, True)
    errors = [text for text in found if text.startswith('error')]
    assert len(errors) == is_found
    if is_found:
        assert errors[0].startswith('error: test_dataloader.batch_size: is 2, but the pipeline')
