"""tools/test.py --sizes and --corruptions: one model, tested several times."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from PIL import Image
from toy_models import save_classifier
from toy_runs import NO_WORKERS

from cyclemlp_mm.apis.test import test as evaluate
from cyclemlp_mm.datasets import CorruptImage, corrupt, shapes
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.engine.test_series import (
    ALEXNET,
    BENCHMARK,
    CorruptionSeries,
    check_size,
    input_size,
    scale_pipeline,
)
from cyclemlp_mm.errors import UserError

imagecorruptions = pytest.importorskip('imagecorruptions')

ALL = [name for group in corrupt.CORRUPTIONS.values() for name in group]
TOP1 = 'accuracy/top1'


def picture(height=48, width=64):
    """A BGR image with smooth and sharp parts."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([3 * x, 4 * y, 255 * ((x // 8 + y // 8) % 2)], -1)
    return image.astype(np.uint8)


def corrupted(name, severity, index=5, image=None):
    image = picture() if image is None else image
    return CorruptImage(name, severity)(dict(img=image, sample_idx=index))['img']


#: Blur by glass is compiled first.
SLOW = pytest.param('glass_blur', marks=pytest.mark.slow)


@pytest.mark.parametrize('severity', [1, 5])
@pytest.mark.parametrize('name', [SLOW if name == 'glass_blur' else name for name in ALL])
def test_images_are_those_of_the_library(name, severity):
    seed = np.random.SeedSequence([corrupt.zlib.crc32(name.encode()), severity, 5]).generate_state(
        1
    )
    np.random.seed(seed)
    own = dict(seed=int(seed[0])) if name in ('glass_blur', 'impulse_noise') else {}
    rgb = np.ascontiguousarray(picture()[..., ::-1])
    expected = imagecorruptions.corrupt(rgb, severity, name, **own)
    before = np.random.get_state()[1].tolist()
    found = corrupted(name, severity)
    assert np.array_equal(found[..., ::-1], expected) and found.dtype == np.uint8
    assert not np.array_equal(found, picture())
    assert np.random.get_state()[1].tolist() == before  # other steps draw as without it
    assert np.array_equal(found, corrupted(name, severity))
    if name in ('gaussian_noise', 'impulse_noise', 'snow'):
        assert not np.array_equal(found, corrupted(name, severity, index=6))


def test_names_are_those_of_the_library():
    subsets = dict.fromkeys(['noise', 'blur', 'weather', 'digital'])
    subsets = {name: tuple(imagecorruptions.get_corruption_names(name)) for name in subsets}
    extra = tuple(imagecorruptions.get_corruption_names('validation'))
    assert {**subsets, 'extra': extra} == corrupt.CORRUPTIONS
    assert BENCHMARK == tuple(imagecorruptions.get_corruption_names()) == tuple(ALEXNET)


def test_images_that_do_not_fit():
    for image in (picture(31, 64), picture()[..., :2], picture().astype(np.float32)):
        with pytest.raises(UserError, match='corruptions need'):
            corrupted('fog', 1, image=image)


@pytest.mark.parametrize(
    'config, own, sizes',
    [
        ('cyclemlp_b1_in1k', 224, {224: [248, 224], 128: [142, 128], 384: [425, 384]}),
        ('cyclemlp_b4_in1k', 224, {224: [256, 224], 112: [128, 112]}),
        ('cyclemlp_demo', 64, {64: [(64, 64)], 96: [(96, 96)]}),
        ('repmlp_b_in1k', 224, {448: [(512, 512), 448]}),
    ],
)
def test_a_size_scales_the_pipeline(config, own, sizes):
    assert input_size(load_config(config)) == own
    for size, expected in sizes.items():
        pipeline = load_config(config).test_dataloader.dataset.pipeline
        scale_pipeline(pipeline, size)
        assert [step.get('scale', step.get('crop_size')) for step in pipeline[1:-1]] == expected


@pytest.mark.parametrize(
    'steps',
    [
        [],
        [dict(type='ResizeEdge', scale=64)],
        [dict(type='Resize', scale=(64, 64), keep_ratio=True)],
        [dict(type='Resize', scale=(64, 32))],
    ],
)
def test_pipelines_without_one_size_are_refused(steps):
    with pytest.raises(UserError, match=r'test_dataloader\.dataset\.pipeline'):
        scale_pipeline([dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')], 64)


def test_sizes_that_a_backbone_does_not_take():
    pytest.importorskip('mmpretrain')
    arch = dict(channels=[8, 8], depths=[1, 1], sharesets_nums=[1, 1])
    repmlp = dict(type='DenseRepMLPNet', arch=arch, img_size=32, out_indices=(1,))
    model = MODELS.build(repmlp)
    holder = ConfigDict(backbone=model)
    check_size(holder, 64)
    with pytest.raises(UserError, match=r'--sizes 48: .* partitions of 32×32 px: give multiples'):
        check_size(holder, 48)
    model.forward = lambda image: model.patch_embed(image[:, :2])
    with pytest.raises(UserError, match=r'--sizes 64: .* does not take this size'):
        check_size(holder, 64)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A command that tests a toy classifier on generated images; it adds options."""
    pytest.importorskip('mmpretrain')
    folder = tmp_path_factory.mktemp('series')
    data = shapes.write_image_folders(folder / 'data', 4, 12, (64, 64))
    config, checkpoint = save_classifier(folder / 'model', sorted(shapes.CLASSES))
    return [str(config), str(checkpoint), '--data', str(data)]


def run(command, folder, *options, workers=0):
    loading = NO_WORKERS if not workers else [f'test_dataloader.num_workers={workers}']
    options = [*options, '--work-dir', str(folder), '--cfg-options', *loading]
    return evaluate([*command, *options])


def test_sizes(classifier, tmp_path, capsys):
    found = run(classifier, tmp_path / 'all', '--sizes', '96', '64', '48')
    assert list(found) == [48, 64, 96]
    plain = run(classifier, tmp_path / 'plain')
    assert found[64][TOP1] == plain[TOP1]
    assert len({str(metrics) for metrics in found.values()}) > 1  # the sizes differ
    saved = json.loads((tmp_path / 'all' / 'sizes.json').read_text())
    assert saved['sizes']['96'] == found[96] and saved['checkpoint'].endswith('epoch_1.pth')
    table = (tmp_path / 'all' / 'sizes.md').read_text()
    assert f'| 48 | {found[48][TOP1]:.2f} |' in table and table in capsys.readouterr().out
    assert imread(tmp_path / 'all' / 'sizes.png').std() > 0.05


def test_corruptions_of_a_classifier(classifier, tmp_path, capsys):
    reference = tmp_path / 'reference.json'
    tests = {severity: {TOP1: 20.0} for severity in range(1, 6)}
    reference.write_text(json.dumps(dict(corrupted=dict(fog=tests))))
    options = ['--corruptions', 'fog', '--reference', str(reference)]
    found = run(classifier, tmp_path / 'wd', *options)
    saved = json.loads((tmp_path / 'wd' / 'corruptions.json').read_text())
    assert {k: saved[k] for k in found} == found and list(found['corrupted']) == ['fog']
    errors = [100 - metrics[TOP1] for metrics in found['corrupted']['fog'].values()]
    assert len(errors) == 5 and len(set(errors)) > 1
    summary = found['summary'][TOP1]
    assert summary['mean_error'] == pytest.approx(np.mean(errors))
    assert summary['clean_error'] == pytest.approx(100 - found['clean'][TOP1])
    assert summary['mCE'] == summary['CE']['fog'] == pytest.approx(100 * np.mean(errors) / 80)
    values = [*errors, np.mean(errors), summary['mCE']]
    table = (tmp_path / 'wd' / 'corruptions.md').read_text()
    assert f'| fog | {" | ".join(f"{value:.1f}" for value in values)} |' in table
    printed = capsys.readouterr().out
    assert table in printed and f'(reference: {reference})' in table
    assert len(re.findall(r'test \d of 6: .* top-1 ', printed)) == 6
    assert imread(tmp_path / 'wd' / 'corruptions.png').std() > 0.05


def test_folders_of_corrupted_images(tmp_path):
    cfg = load_config('cyclemlp_demo')
    cfg.test_dataloader.dataset.metainfo = dict(classes=('a', 'b'))
    for part in itertools.product(('fog', 'mist'), '12345', 'ab'):
        tmp_path.joinpath(*part).mkdir(parents=True)
    series = CorruptionSeries(cfg, folder=str(tmp_path))
    assert len(series.loaders) == 11 and series.loaders['clean', 0] is None
    dataset = series.loaders['mist', 4].dataset
    assert dataset.data_root == str(tmp_path / 'mist' / '4') and 'split' not in dataset
    steps = ['LoadImageFromFile', 'Resize', 'PackInputs']
    assert [step['type'] for step in dataset.pipeline] == steps
    assert dataset.pipeline[1]['scale'] == (64, 64)
    with pytest.raises(UserError, match='snow unknown; there are fog, mist'):
        CorruptionSeries(cfg, ['snow'], str(tmp_path))
    (tmp_path / 'fog' / '3' / 'b').rename(tmp_path / 'fog' / '3' / 'c')
    with pytest.raises(UserError, match=r'fog/3 has the class folders a, c, but .* needs a, b'):
        CorruptionSeries(cfg, folder=str(tmp_path))
    (tmp_path / 'fog' / '3').rename(tmp_path / 'fog' / '6')
    with pytest.raises(UserError, match='lacks the folder fog/3'):
        CorruptionSeries(cfg, folder=str(tmp_path))


def test_imagenet_c_itself(tmp_path):
    """Its folders have WordNet's numbers; their order is that of the labels."""
    cfg = load_config('cyclemlp_b1_in1k')
    for severity, number in itertools.product('12345', range(1000)):
        (tmp_path / 'frost' / severity / f'n{number:08}').mkdir(parents=True)
    series = CorruptionSeries(cfg, folder=str(tmp_path), reference='alexnet')
    dataset = series.loaders['frost', 2].dataset
    # As ImageNet-C was made, of cropped images; of detectors, in the size of their file.
    assert dataset.type == 'CustomDataset' and dataset.pipeline[1]['scale'] == (224, 224)
    for config, place in (('cyclemlp_b1_in1k', -2), ('retinanet_cyclemlp_demo', 1)):
        pipeline = CorruptionSeries(load_config(config), ['fog']).loaders['fog', 3].dataset.pipeline
        assert pipeline[place] == dict(type='CorruptImage', corruption='fog', severity=3)
    (tmp_path / 'frost' / '5' / 'n00000999').rmdir()
    with pytest.raises(UserError, match=r"frost/5 has .* needs ImageNet's 1000: n01440764"):
        CorruptionSeries(cfg, folder=str(tmp_path))


@pytest.mark.slow
def test_made_and_stored_corruptions_give_the_same_results(classifier, tmp_path):
    """The stored images are PNGs of what the first run makes; workers change nothing."""
    made = run(classifier, tmp_path / 'made', '--corruptions', 'fog', workers=2)
    files = sorted(Path(classifier[3], 'val').glob('*/*'))
    for severity, (index, file) in itertools.product(range(1, 6), enumerate(files)):
        image = np.asarray(Image.open(file).convert('RGB'))[..., ::-1]
        target = tmp_path / f'c/fog/{severity}/{file.parent.name}/{file.stem}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(corrupted('fog', severity, index, image)[..., ::-1]).save(target)
    stored = run(classifier, tmp_path / 'stored', '--corrupted-data', str(tmp_path / 'c'))
    assert [stored[key] for key in ('clean', 'corrupted')] == [made['clean'], made['corrupted']]


def test_mean_corruption_error_by_hand(tmp_path):
    cfg = load_config('cyclemlp_b1_in1k')
    series = CorruptionSeries(cfg, ['fog', 'snow'], reference='alexnet')
    rows = dict(fog=[60.0, 50, 40, 30, 20], snow=[50.0, 50, 50, 50, 50])
    table, summary = series._table(TOP1, 80.0, rows)
    ce = dict(fog=60 / 0.819324, snow=50 / 0.866816)
    assert summary['CE'] == pytest.approx(ce)
    assert summary['mCE'] == pytest.approx(sum(ce.values()) / 2)
    assert '| fog | 40.0 | 50.0 | 60.0 | 70.0 | 80.0 | 60.0 | 73.2 |' in table
    series = CorruptionSeries(load_config('fpn_cyclemlp_b1_256x256_600i_small'), ['fog'])
    lines, summary = series._table('mIoU', 40.0, dict(fog=[30.0, 20, 10, 0, 0]))
    assert summary == dict(P=40, mPC=12, rPC=30) and lines[-1] == 'P 40.0, mPC 12.0, rPC 30.0 %'


@pytest.mark.parametrize(
    'config, options, message',
    [
        ('retinanet_cyclemlp_demo', ['--sizes', '64'], '--sizes is for classifiers'),
        ('', ['--reference', 'alexnet'], '--reference .*--corruptions: give it too'),
        ('', ['--sizes', '64', '--corruptions'], '--sizes and --corruptions do not go together'),
        ('', ['--corruptions', '--out', 'x.pkl'], '--corruptions and --out do not go together'),
        ('', ['--sizes', '64', '64'], '--sizes must be different'),
        ('', ['--corruptions', 'fogg'], 'fogg unknown; there are gaussian_noise.*groups are noise'),
        ('', ['--corruptions', '--reference', 'alexnet'], r'1000 classes, but the model has \{4\}'),
        ('', ['--corruptions', '--reference', __file__], 'is not the complete corruptions.json'),
    ],
)
def test_options_that_do_not_fit(config, options, message, classifier, coco_data, tmp_path):
    data = coco_data if config else classifier[3]
    command = [config or classifier[0], classifier[1], '--data', str(data)]
    with pytest.raises(UserError, match=message):
        run(command, tmp_path, *options)


@pytest.fixture(scope='module')
def coco_data(tmp_path_factory):
    return shapes.write_coco(tmp_path_factory.mktemp('data') / 'coco', 2, 3, (64, 64))


@pytest.mark.slow
def test_a_mask_detector(mask_detector, coco_data, tmp_path):
    command = [*map(str, mask_detector), '--data', str(coco_data)]
    found = run(command, tmp_path, '--corruptions', 'fog')
    assert list(found['corrupted']) == ['fog']
    assert list(found['summary']) == ['coco/bbox_mAP', 'coco/segm_mAP']
    table = (tmp_path / 'corruptions.md').read_text()
    assert '| box AP, severity | 1 |' in table and '| mask AP, severity | 1 |' in table
