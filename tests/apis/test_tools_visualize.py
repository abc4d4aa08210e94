"""tools/visualize.py, by its arguments."""

import json

import pytest
from matplotlib.image import imread
from PIL import Image
from toy_models import save_segmentor

from cyclemlp_mm.apis.visualize import visualize
from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.errors import CheckpointError, UserError


def draw(*arguments):
    return visualize([str(argument) for argument in arguments])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('data') / 'shapes', 2, 4, (64, 64))


def test_the_staircase(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw('staircase', 3, 9)
    assert 'picture work_dirs/pictures/staircase.png' in capsys.readouterr().out
    assert (tmp_path / 'work_dirs/pictures/staircase.png').is_file()


def test_fields_and_features(detector, tmp_path, capsys):
    config, checkpoint = detector
    small = ('--weights', checkpoint, '--size', 64, '--number', 1)
    path = draw('field', config, *small, '--out', tmp_path / 'field.svg')
    assert path.read_text().startswith('<?xml')
    printed = capsys.readouterr().out
    assert printed.count('CycleMLP') == printed.count('ResNet-50') == 4  # stride 4 as well
    with pytest.raises(CheckpointError, match=r'epoch_1\.pth does not fit'):
        draw('field', 'cyclemlp_demo', *small)
    Image.new('RGB', (100, 80)).save(tmp_path / 'image.png')
    images = '--images', tmp_path / 'image.png', '--number', 1, '--out', tmp_path / 'field.png'
    draw('field', config, *images, '--size', 64)
    with pytest.raises(UserError, match='smaller than --size 96'):
        draw('field', config, *images, '--size', 96)
    path = draw('features', *detector, tmp_path / 'image.png', '--out', tmp_path / 'f.png')
    assert imread(path).shape[1] > 1000


def test_a_gallery(detector, data, tmp_path, capsys):
    path = draw('gallery', *detector, '--data', data, '--number', 2, '--out', tmp_path / 'g.png')
    printed = capsys.readouterr().out
    scores = [float(line.split('F1 ')[1][:4]) for line in printed.splitlines() if 'F1 ' in line]
    assert '4 images' in printed and len(scores) == 2 and scores == sorted(scores)
    assert imread(path).shape[1] > 500
    other = '--cfg-options', 'val_dataloader.dataset.ann_file=gone.json'  # wins over --data
    with pytest.raises((UserError, OSError), match=r'gone\.json'):
        draw('gallery', *detector, '--data', data, '--out', tmp_path / 'g.png', *other)
    data = write_ade20k(tmp_path / 'shapes', 2, 3, (64, 64))
    model = save_segmentor(tmp_path / 'model', (data / 'classes.txt').read_text().split())
    draw('gallery', *model, '--data', data, '--out', tmp_path / 'g.png')
    assert '3 images, mean 0.' in capsys.readouterr().out


def test_an_image_that_the_model_cannot_take_is_named(detector, tmp_path):
    data = write_coco(tmp_path / 'shapes', 2, 2, (64, 64))
    first = min((data / 'val2017').iterdir())
    Image.new('RGB', (2000, 3)).save(first)
    path = data / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    content['images'][0].update(width=2000, height=3)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf'{first.name}: cannot predict images of 2000×3 px'):
        draw('gallery', *detector, '--data', data)


def test_errors(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (['staircase', 4], 'a CycleFC has an odd, positive number of taps'),
        (
            ['gallery', *detector, '--out', detector[0] / 'g'],
            r'--out .*written \(Not a directory\)',
        ),
        (['gallery', *detector], 'the data of this config is not there'),
        (['curves', tmp_path], 'no training run'),
    ):
        with pytest.raises(UserError, match=said):
            draw(*arguments)


def test_curves(tmp_path):
    target = tmp_path / 'run' / '20260101_000000' / 'vis_data'
    target.mkdir(parents=True)
    (target / 'scalars.json').write_text(json.dumps(dict(loss=1.0, lr=0.1, step=1)))
    assert draw('curves', tmp_path / 'run', '--out', tmp_path / 'deep' / 'curves.png').is_file()
