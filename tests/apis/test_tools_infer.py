"""tools/infer.py: what it writes is what the inferencers of mmdet and mmseg say in Python."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from toy_models import save_classifier

from cyclemlp_mm.apis.infer import infer
from cyclemlp_mm.errors import CheckpointError, MissingFileError, UserError
from cyclemlp_mm.inference import Predictor


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(96, 128), (128, 96), (96, 128)]):
        coarse = rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f'{i}.png')
    return folder


def masks_of(out):
    return {path.name: np.asarray(Image.open(path)) for path in sorted((out / 'masks').iterdir())}


def json_of(out):
    return json.loads((out / 'predictions.json').read_text())


#: A segmentor as others write its config: small images reach the backbone as they are.
UNPADDED = ['--cfg-options', 'model.data_preprocessor.test_cfg=None']


def run(model, *arguments):
    return infer([*map(str, model), *map(str, arguments)])


@pytest.mark.parametrize('kind, number', [('detector', 10), ('mask_detector', 5)])
def test_detections_are_the_inferencers(kind, number, images, tmp_path, request):
    """Every box, score, label and mask is mmdet's own, to the last bit."""
    from mmdet.apis import DetInferencer

    model = request.getfixturevalue(kind)
    assert run(model, images, '--out', tmp_path, '--json').num_images == 3
    content = json_of(tmp_path)
    inferencer = DetInferencer(*map(str, model), device='cpu', show_progress=False)
    files = sorted(str(path) for path in images.iterdir())
    expected = inferencer(files)['predictions']
    assert [entry['file_name'] for entry in content['images']] == files
    for i, theirs in enumerate(expected, 1):
        ours = [a for a in content['annotations'] if a['image_id'] == i]
        assert [a['score'] for a in ours] == theirs['scores']
        assert [a['category_id'] - 1 for a in ours] == theirs['labels']
        boxes = np.array([a['bbox'] for a in ours]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, np.array(theirs['bboxes']).reshape(-1, 4), atol=1e-4)
        assert [a.get('segmentation') for a in ours] == theirs.get('masks', [None] * len(ours))
    assert sum(len(one['scores']) for one in expected) >= number  # the toy does find something
    assert sorted(p.name for p in (tmp_path / 'vis').iterdir()) == ['0.png', '1.png', '2.png']
    assert Image.open(tmp_path / 'vis' / '1.png').size == (480, 640)  # enlarged
    COCO(str(tmp_path / 'predictions.json'))  # readable by COCO's own tools


def test_segments_are_the_inferencers(segmentor, images, tmp_path):
    """Every pixel of every mask is mmseg's own; and folded by --deploy, but for ties."""
    from mmseg.apis import MMSegInferencer

    run(segmentor, images, '--out', tmp_path, '--json')
    inferencer, found = MMSegInferencer(*map(str, segmentor), device='cpu'), masks_of(tmp_path)
    for path in sorted(images.iterdir()):
        expected = inferencer(str(path))['predictions']
        assert (found[f'{path.stem}.png'] == expected).all()
    for entry in json_of(tmp_path)['images']:
        areas = [segment['area'] for segment in entry['segments_info']]
        assert sum(areas) == entry['height'] * entry['width']
    assert Image.open(tmp_path / 'masks' / '0.png').mode == 'P'  # seen in colours
    run(segmentor, images, '--out', tmp_path / 'folded', '--no-vis', '--deploy')
    folded = masks_of(tmp_path / 'folded')
    assert all((found[name] != folded[name]).mean() < 1e-3 for name in found)
    model = Predictor(*segmentor, 'cpu', deploy=True).inferencer.model
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_batches_say_the_same(segmentor, detector, images, tmp_path):
    for model in (segmentor, detector):
        for name, size in (('one', 1), ('many', 2)):
            run(model, images, '--out', tmp_path / name, '--json', '--no-vis', '--batch-size', size)
    assert not (tmp_path / 'many' / 'vis').exists()
    one, many = (masks_of(tmp_path / name) for name in ('one', 'many'))
    # A tie may fall the other way.
    assert all((one[name] != many[name]).mean() < 1e-3 for name in one) and len(one) == 3
    one, many = (json_of(tmp_path / name)['annotations'] for name in ('one', 'many'))
    scores = ([a['score'] for a in found] for found in (one, many))
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)


def test_videos_are_predicted_frame_by_frame(segmentor, detector, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 6, 8, 3), np.uint8)
    path = tmp_path / 'walk.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 12, (128, 96))
    for frame in frames:
        writer.write(cv2.resize(frame, (128, 96)))
    writer.release()
    assert run(detector, path, '--out', tmp_path, '--json', '--batch-size', 2).num_images == 5
    drawing = tmp_path / 'vis' / 'walk.mp4'
    drawn = cv2.VideoCapture(str(drawing))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and drawn.get(cv2.CAP_PROP_FPS) == 12
    # OpenCV reports the name of its decoder (VP90); browsers go by the container's: type, version,
    # number of entries and size of the first, then its codec
    content = drawing.read_bytes()
    codec = content.index(b'stsd') + 16
    assert content[codec : codec + 4] in (b'vp09', b'avc1')
    assert [entry['frame'] for entry in json_of(tmp_path)['images']] == [0, 1, 2, 3, 4]
    run(segmentor, path, '--out', tmp_path, '--no-vis')
    assert len(list((tmp_path / 'masks' / 'walk').iterdir())) == 5


def test_tiles(segmentor, detector, images, tmp_path):
    big = np.tile(np.asarray(Image.open(images / '0.png')), (2, 3, 1))
    Image.fromarray(big).save(tmp_path / 'big.png')
    tiled = tmp_path / 'big.png', '--out', tmp_path, '--tile', 128, '--json', '--no-vis'
    run(segmentor, *tiled)
    assert masks_of(tmp_path)['big.png'].shape == (192, 384)
    run(detector, *tiled)
    reach = np.array([a['bbox'] for a in json_of(tmp_path)['annotations']])
    assert (reach[:, 0] + reach[:, 2]).max() > 256  # found beyond the first tiles


def test_files_that_cannot_be_read_are_named_and_the_others_done(segmentor, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / 'images')
    (folder / '1.png').write_bytes((folder / '1.png').read_bytes()[:100])
    (folder / 'film.mp4').write_bytes(b'no film')
    with pytest.raises(UserError, match=r'2 of 4 files(?s:.*)1\.png(?s:.*)film\.mp4'):
        run(segmentor, folder, '--out', tmp_path)
    assert list(masks_of(tmp_path)) == ['0.png', '2.png']


def test_images_that_the_model_cannot_take_are_named_and_the_others_done(
    segmentor, detector, images, tmp_path
):
    more = ['--out', tmp_path, '--json', '--batch-size', 4]
    folder = shutil.copytree(images, tmp_path / 'images')
    Image.new('RGB', (31, 31)).save(folder / '1_small.png')
    with pytest.raises(UserError, match=r'1 of 4 files(?s:.*)1_small\.png: .* 31×31 px: .*32x32'):
        run(segmentor, folder, *more, *UNPADDED)
    names = list(masks_of(tmp_path))
    assert names == ['0.png', '1.png', '2.png']
    assert [Path(entry['file_name']).name for entry in json_of(tmp_path)['images']] == names
    run(segmentor, folder / '1_small.png', *more)
    assert masks_of(tmp_path)['1_small.png'].shape == (31, 31)
    Image.new('RGB', (2000, 3)).save(folder / '1_narrow.png')  # resized to no row at all
    with pytest.raises(UserError, match=r'1 of 5 files(?s:.*)1_narrow\.png: .*so narrow') as caught:
        run(detector, folder, *more)
    assert 'OpenCV' not in str(caught.value) and len(json_of(tmp_path)['images']) == 4


def test_nothing_is_overwritten_and_a_full_disk_leaves_nothing(
    detector, images, tmp_path, monkeypatch
):
    folder = shutil.copytree(images, tmp_path / 'vis')
    before = (folder / '0.png').read_bytes()
    with pytest.raises(UserError, match='would overwrite'):
        run(detector, folder, '--out', tmp_path)
    assert (folder / '0.png').read_bytes() == before


def test_errors(detector, images):
    config, checkpoint = detector
    with pytest.raises(MissingFileError, match=r'gone\.pth does not exist'):
        run((config, 'gone.pth'), images)
    with pytest.raises(UserError, match='does not fit the model'):
        run(('cyclemlp_b1_in1k', checkpoint), images)
    for line, message in {
        '--cfg-options model.test_cfgg.x=1': r'model\.test_cfgg\.x: .* mean test_cfg\?',
        '--tile-overlap 0.3': 'give --tile',
        '--device cuda:99': r'PyTorch sees \d+ GPUs',
        '--no-vis': 'nothing would be written. Give --json',
    }.items():
        with pytest.raises(UserError, match=message):
            run(detector, images, *line.split())


def test_weights_of_another_model_predict_nothing(detector, images, tmp_path):
    """mmengine would warn, keep random weights, and draw noise."""
    content = torch.load(detector[1], weights_only=False)
    content['state_dict'].pop('bbox_head.retina_reg.bias')
    torch.save(content, tmp_path / 'half.pth')
    with pytest.raises(CheckpointError, match='1 of 34 tensors are missing'):
        run((detector[0], tmp_path / 'half.pth'), images, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_classifier(images, tmp_path):
    """The scores are mmpretrain's own."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.apis import ImageClassificationInferencer

    config, checkpoint = save_classifier(tmp_path / 'model')
    run((config, checkpoint), images, '--out', tmp_path, '--json')
    inferencer = ImageClassificationInferencer(str(config), str(checkpoint), device='cpu')
    for entry in json_of(tmp_path)['images']:
        [expected] = inferencer(entry['file_name'])
        np.testing.assert_array_equal(np.float32(entry['scores']), expected['pred_scores'])
    assert len(list((tmp_path / 'vis').iterdir())) == 3
    with pytest.raises(UserError, match='--tile is for detectors and segmentors'):
        run((config, checkpoint), images, '--out', tmp_path, '--tile', '64')
    with pytest.raises(UserError, match='--score-thr is for boxes, which no model of mmpretrain'):
        run((config, checkpoint), images, '--out', tmp_path, '--score-thr', '0.5')
