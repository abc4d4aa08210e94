"""What only segmentors run into, found before training: crops, batches, norms over one value."""

import re

import pytest
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from toy_models import ARCH

from cyclemlp_mm.datasets.shapes import write_ade20k
from cyclemlp_mm.engine import load_config, use_own_data
from cyclemlp_mm.preflight.findings import Report
from cyclemlp_mm.preflight.run import check_dataset
from cyclemlp_mm.preflight.segmentation import check_batch_of_one, check_crop

pytest.importorskip('mmseg')
FPN, UPERNET = 'fpn_cyclemlp_b1_256x256_600i_small', 'upernet_cyclemlp_b1_512x512_160k_ade20k'
KEY = 'train_dataloader.batch_size'


def findings(check, *arguments):
    init_default_scope('mmseg')
    report = Report()
    check(report, *arguments)
    return [str(finding) for finding in report.findings]


@pytest.mark.parametrize(
    'canvas, step, text',
    [
        ((256, 256), None, None),
        ((512, 512), None, 'warning: .*is 512×512, but the pipeline gives 256×256: 75%'),
        ((256, 320), None, 'warning: .*20% of each'),
        ((224, 224), None, 'warning: .*224×224, but .* gives 256×256: smaller'),
        ((256, 256), dict(type='Resize', scale=(96, 48), keep_ratio=False), '.*48×96: 93% of each'),
        ((256, 256), dict(type='Resize', scale=256), None),
        ((256, 256), dict(type='Resize', scale=(96, 48), keep_ratio=True), None),  # of the image's
        ((256, 256), dict(type='RandomResize', scale=(96, 48)), None),
    ],
)
def test_crop_and_canvas(canvas, step, text):
    cfg = load_config(FPN)
    cfg.model.data_preprocessor.size = canvas
    if step is not None:
        pipeline = cfg.train_dataloader.dataset.pipeline
        pipeline[:] = [s for s in pipeline if s.type.startswith(('Load', 'Pack'))]
        pipeline.insert(2, step)
    found = findings(check_crop, cfg)
    assert len(found) == (text is not None)
    assert text is None or re.match(text, found[0]), found


def test_shipped_crops_fit():
    for name in (FPN, UPERNET, 'fpn_cyclemlp_b1_512x512_40k_ade20k'):
        assert findings(check_crop, load_config(name)) == []


def model_of(batch, **head):
    init_default_scope('mmseg')
    cfg = load_config(UPERNET)
    cfg.train_dataloader.batch_size = batch
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    widths = list(ARCH['widths'])
    if 'type' in head:
        settings = dict(in_index=3, channels=8, dropout_ratio=0, num_classes=4, align_corners=False)
        settings.update(loss_decode=dict(type='CrossEntropyLoss'), norm_cfg=dict(type='BN'))
        cfg.model.decode_head = dict(settings, in_channels=widths[-1], **head)
        cfg.model.auxiliary_head = cfg.model.neck = None
    else:
        cfg.model.decode_head.update(in_channels=widths, channels=8, **head)
        cfg.model.auxiliary_head.update(in_channels=widths[2], channels=8)
        cfg.model.auxiliary_head.norm_cfg = dict(type='BN')
    return cfg, MODELS.build(cfg.model)


BN, GN = dict(norm_cfg=dict(type='BN')), dict(norm_cfg=dict(type='GN', num_groups=4))


@pytest.mark.parametrize(
    'batch, head, is_found',
    [
        (1, BN, True),
        (2, BN, False),
        (1, GN, False),
        (1, dict(type='PSPHead', pool_scales=(1, 2)), True),
        (1, dict(type='ASPPHead', dilations=(1, 2)), True),
        (1, dict(type='FCNHead', num_convs=1), False),
    ],
)
def test_norms_over_one_value(batch, head, is_found):
    found = findings(check_batch_of_one, *model_of(batch, **head))
    assert len(found) == is_found
    assert not is_found or (found[0].startswith(f'error: {KEY}: is 1') and 'GN' in found[0])


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
    cfg, model = model_of(3, **BN)
    cfg.train_dataloader.update(sampler=dict(type='DefaultSampler', shuffle=True))
    cfg.train_dataloader.update(loader)
    found = findings(check_batch_of_one, cfg, model, number)
    assert len(found) == is_found
    what = f'{KEY}: is 3, and the last batch of 4 images is one image'
    assert not is_found or (what in found[0] and 'drop_last=True' in found[0])


@pytest.mark.parametrize(
    'batch, is_mixed, is_found', [(2, True, True), (1, True, False), (2, False, False)]
)
def test_batches_of_several_sizes_in_validation(tmp_path, batch, is_mixed, is_found):
    data = write_ade20k(tmp_path / 'data', 1, 3, (64, 48))
    for part in ('images', 'annotations') if is_mixed else ():
        path = sorted((data / part / 'validation').iterdir())[1]
        Image.open(path).resize((96, 48), Image.NEAREST).save(path)
    cfg = use_own_data(load_config(FPN), data)
    cfg.test_dataloader.batch_size = batch
    dataset = cfg.val_dataloader.dataset
    found = findings(check_dataset, cfg, 'val', dataset, dataset.metainfo.classes, True)
    errors = [text for text in found if text.startswith('error')]
    key = 'test_dataloader.batch_size'
    assert [f'error: {key}: is 2, but the pipeline' in text for text in errors] == [True] * is_found
