"""Every tool loads an image as training does, from shipped configs and from those of a work dir."""

import json
import pickle
import shutil

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from toy_models import save_detector, save_segmentor
from toy_runs import NO_WORKERS

from cyclemlp_mm.apis.infer import infer
from cyclemlp_mm.apis.test import test as evaluate
from cyclemlp_mm.apis.visualize import visualize
from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.engine import check_loaded_weights, skip_bad_images
from cyclemlp_mm.inference import Predictor
from cyclemlp_mm.visualization import gallery

SIZE = (96, 64)  # width, height as stored


def turn(files):
    """Give three JPEGs an EXIF orientation; their pixels and annotations stay."""
    for path, orientation in zip(sorted(files), (6, 8, 5), strict=True):
        image, exif = Image.open(path), Image.Exif()
        exif[0x0112] = orientation
        image.save(path, quality='keep', exif=exif)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp('detector')
    data = write_coco(folder / 'data', 2, 3, SIZE)
    turn(data.glob('val2017/*.jpg'))
    return (*save_detector(folder / 'model'), data)


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    folder = tmp_path_factory.mktemp('segmentor')
    data = write_ade20k(folder / 'data', 2, 3, SIZE)
    turn(data.glob('images/validation/*.jpg'))
    classes = (data / 'classes.txt').read_text().split()
    return (*save_segmentor(folder / 'model', tuple(classes)), data)


def run_test(config, checkpoint, data, *options, max_bad_fraction=0.05):
    """tools/test.py in the current folder, without worker processes."""
    arguments = ['--data', str(data), '--work-dir', 'wd', '--show-dir', 'drawn']
    arguments += [*options, '--cfg-options', *NO_WORKERS, f'max_bad_fraction={max_bad_fraction}']
    evaluate([config, checkpoint, *arguments])


def sizes(files):
    return {Image.open(file).size for file in files}


@pytest.mark.parametrize('task', ['detector', 'segmentor'])
def test_annotations_for_the_image_as_stored(task, request, tmp_path, monkeypatch):
    """The size of the annotations decides: in the test, its pictures and the gallery."""
    config, checkpoint, data = map(str, request.getfixturevalue(task))
    monkeypatch.chdir(tmp_path)
    run_test(config, checkpoint, data, '--out', 'found.pkl')
    found = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    assert [tuple(one['ori_shape']) for one in found] == 3 * [SIZE[::-1]]
    large = [round(side * 640 / max(SIZE)) for side in SIZE]  # pictures are enlarged
    for width, height in sizes((tmp_path / 'drawn').iterdir()):  # a legend may stand below
        assert width == 2 * large[0] + 8 and large[1] <= height < 1.3 * large[1]
    assert len(list((tmp_path / 'drawn').iterdir())) == 3

    drawn = []
    monkeypatch.setattr(gallery, 'draw_gallery', lambda judged, *_: drawn.extend(judged))
    visualize(['gallery', config, checkpoint, '--data', data, '--out', 'g.png'])
    assert {one.image.shape for one in drawn} == {(*SIZE[::-1], 3)}


def test_inference_turns_images_unless_told(detector, tmp_path, capsys):
    config, checkpoint, data = map(str, detector)
    for options, size in (([], SIZE[::-1]), (['--as-stored'], SIZE)):
        out = tmp_path / f'out{len(options)}'
        infer([config, checkpoint, f'{data}/val2017', '--out', str(out), '--json', *options])
        large = tuple(round(side * 640 / max(size)) for side in size)
        assert sizes((out / 'vis').iterdir()) == {large}
        [entry, *_] = json.loads((out / 'predictions.json').read_text())['images']
        assert (entry['width'], entry['height']) == size
        assert 'converted 3 of 3 images' in capsys.readouterr().out


def test_a_broken_image_in_a_test_counts_as_black(detector, tmp_path, monkeypatch):
    config, checkpoint, _ = map(str, detector)
    data = shutil.copytree(detector[2], tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    broken = min((data / 'val2017').iterdir())
    broken.write_bytes(broken.read_bytes()[:-200])
    run_test(config, checkpoint, data, max_bad_fraction=0.5)
    [log] = (tmp_path / 'wd').glob('*/*.log')
    assert f'image skipped: {broken}: is truncated' in log.read_text()
    large = [round(side * 640 / max(SIZE)) for side in SIZE]
    assert sizes([tmp_path / 'drawn' / broken.name]) == {(2 * large[0] + 8, large[1])}
    visualize(['gallery', config, checkpoint, '--data', str(data), '--out', 'g.png'])


def test_pictures_of_images_of_one_name_in_sub_folders(detector, tmp_path, monkeypatch):
    """mmdet's hook gives a/0.jpg and b/0.jpg one file."""
    config, checkpoint, _ = map(str, detector)
    data = write_coco(tmp_path / 'data', 1, 4, SIZE)
    path = data / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    for i, image in enumerate(content['images']):
        name = f'cam{i % 2}/{i // 2}.jpg'
        (data / 'val2017' / name).parent.mkdir(exist_ok=True)
        (data / 'val2017' / image['file_name']).rename(data / 'val2017' / name)
        image['file_name'] = name
    path.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    run_test(config, checkpoint, data)
    drawn = sorted(str(p.relative_to(tmp_path / 'drawn')) for p in tmp_path.glob('drawn/*/*.jpg'))
    assert drawn == ['cam0/0.jpg', 'cam0/1.jpg', 'cam1/0.jpg', 'cam1/1.jpg']


@pytest.mark.parametrize(
    'channels, load',
    [
        (1, dict(type='LoadImageFromFile', color_type='grayscale')),
        pytest.param(4, dict(type='LoadImageFromNpyFile'), marks=pytest.mark.slow),
    ],
)
def test_models_of_other_channels(segmentor, tmp_path, monkeypatch, channels, load):
    """Inference, feature maps, fields and the gallery read as the config's pipeline does."""
    if not hasattr(pytest.importorskip('mmseg.datasets.transforms.loading'), load['type']):
        pytest.skip(f'this mmseg has no {load["type"]}')
    data = shutil.copytree(segmentor[2], tmp_path / 'data')
    classes = tuple((data / 'classes.txt').read_text().split())
    settings = dict(data_root=str(data), type='BaseSegDataset', metainfo=dict(classes=classes))
    if channels == 4:
        settings['img_suffix'] = '.npy'
        for image in list(data.glob('images/*/*.jpg')):
            rgb = np.asarray(Image.open(image), np.float32)
            np.save(image.with_suffix('.npy'), (np.concatenate([rgb, rgb[..., :1]], 2) - 99) / 58)
            image.unlink()
    model = save_segmentor(tmp_path / 'model', classes, channels, load, **settings)
    config, checkpoint = map(str, model)
    monkeypatch.chdir(tmp_path)
    report = infer([config, checkpoint, f'{data}/images/validation', '--out', 'out'])
    assert report.num_images == 3 and len(list(tmp_path.glob('out/vis/*'))) == 3
    image = str(min(data.glob('images/validation/*')))
    for arguments in (
        ['features', config, checkpoint, image],
        ['gallery', config, checkpoint],
        ['field', config, '--size', '64', '--number', '1'],
    ):
        assert visualize([*arguments, '--out', f'{arguments[0]}.png']).is_file()
    if channels == 1:  # what is decoded elsewhere, as frames of videos are
        Predictor(config, checkpoint, 'cpu').predict([np.zeros((64, 64, 3), np.uint8)])


def test_a_hook_of_the_users_own_stays_the_only_one():
    own = [dict(type='SkipBadImages', max_bad_fraction=0.2)]
    for hooks, expected in ((own, own), ([], [dict(type='SkipBadImages')])):
        foreign = Config(dict(custom_hooks=hooks))
        skip_bad_images(foreign)
        check_loaded_weights(foreign)
        assert foreign.custom_hooks == [*expected, dict(type='CheckLoadedWeights')]
