"""What the pictures show, checked in their pixels and numbers; they were looked at as well."""

import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread
from torch import nn
from toy_models import ARCH

from cyclemlp_mm.engine import class_palette
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.inference import Instances, Segments
from cyclemlp_mm.inference.predictions import encode_mask
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.ops.cycle_fc import cycle_offsets
from cyclemlp_mm.visualization import curves, figures, gallery, overlay, receptive_field
from cyclemlp_mm.visualization.overlay import Style

CLASSES = ('circle', 'square', 'star')
PALETTE = class_palette(3)


def instances(boxes, scores=None, labels=None, masks=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.float32(np.ones(len(boxes)) if scores is None else scores)
    labels = np.int64(np.zeros(len(boxes)) if labels is None else labels)
    return Instances(boxes, scores, labels, masks)


@pytest.mark.parametrize('k', [1, 3, 5, 9])
def test_the_staircase_is_what_the_code_does(k, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, 'bar', lambda axes, x, *args, **kw: drawn.extend(x))
    figures.draw_staircase([k], tmp_path / 's.png')
    assert drawn == cycle_offsets(2 * k + 1, (k, 1))[:, 0].tolist()
    assert imread(tmp_path / 's.png').ndim == 3
    with pytest.raises(UserError, match=r's\.xyz: .*by its suffix'):
        figures.draw_staircase([k], tmp_path / 's.xyz')


def test_the_field_of_convolutions_is_known():
    """Two 3x3 convolutions at stride 2 and 1 reach 7 pixels."""

    first, second = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def levels(image):
        low = first(image)
        return low, second(low)

    fields = receptive_field.receptive_fields(levels, (2, 2), torch.randn(3, 3, 64, 64))
    for field, reach in zip(fields, (3, 7), strict=True):
        rows, columns = np.where(field.influence > 0)
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == reach
        assert field.influence.sum() == pytest.approx(1)
        assert reach <= field.side(1.0) <= reach + 2  # the cell's middle lies between pixels
        assert field.side(0.5) <= field.side(0.95) <= field.side(1.0)


def test_fields_of_both_networks_are_drawn(tmp_path):
    backbone = CycleMLP(arch=ARCH, out_indices=(1, 3))
    backbone.init_weights()
    torch.manual_seed(0)
    images, strides = torch.randn(1, 3, 64, 64), backbone.out_strides
    levels = receptive_field.backbone_levels(backbone), receptive_field.resnet50_levels(strides)
    ours, theirs = (receptive_field.receptive_fields(one, strides, images) for one in levels)
    assert [field.stride for field in ours] == [8, 32]
    # A peak near the centre, far above what rounding leaves after an output norm.
    for field in ours:
        y, x = np.unravel_index(field.influence.argmax(), field.influence.shape)
        assert max(abs(y - field.centre[0]), abs(x - field.centre[1])) <= 2 * field.stride
    assert ours[0].side(0.5) < ours[1].side(0.5)
    fields = dict(ours=ours, theirs=theirs)
    path = receptive_field.draw_receptive_fields(fields, tmp_path / 'field.png')
    assert imread(path).shape[1] > 300


def test_a_resnet_that_does_not_fit_is_rejected(tmp_path):
    torch.save({'conv1.weight': torch.zeros(1)}, tmp_path / 'half.pth')
    with pytest.raises(UserError, match=r'half\.pth does not hold .* ResNet-50'):
        receptive_field.resnet50_levels((4,), str(tmp_path / 'half.pth'))
    with pytest.raises(UserError, match='has maps of strides'):
        receptive_field.resnet50_levels((4, 64))


def write_run(folder, lines, tail='', time=0):
    target = folder / f'20260101_00000{time}' / 'vis_data'
    target.mkdir(parents=True)
    (target / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + tail)
    return folder


def test_the_starts_of_a_run_are_joined(tmp_path):
    """A resumed training replaces what was logged after its checkpoint."""

    def steps():
        lines = curves.read_scalars(tmp_path)
        return [(line['step'], line['loss']) for line in lines if 'loss' in line]

    first = [dict(loss=3.0, step=2), dict(loss=2.0, step=4)]
    first += [dict(mIoU=40.0, step=4), dict(loss=1.0, step=6)]
    write_run(tmp_path, first, tail='\n{"loss": 0.9, "st')  # killed while it wrote
    assert steps() == [(2, 3.0), (4, 2.0), (6, 1.0)]
    write_run(tmp_path, [dict(loss=1.5, step=6), dict(loss=1.2, step=8)], time=1)
    assert steps() == [(2, 3.0), (4, 2.0), (6, 1.5), (8, 1.2)]
    assert curves.evaluations(curves.read_scalars(tmp_path)) == ('mIoU', [(4, 0.4)])
    # Another training, that logs more seldom.
    write_run(tmp_path, [dict(loss=9.0, step=5), dict(loss=8.0, step=10)], time=2)
    assert steps() == [(5, 9.0), (10, 8.0)]
    write_run(tmp_path, [], tail='{"loss"\n{"loss": 1, "step": 6}\n', time=3)
    assert (6, 1) in steps()


def test_evaluations_lie_at_their_iteration(tmp_path):
    """Of epoch-based runs, an evaluation's own step is its epoch."""
    lines = [dict(loss=2.0, lr=0.1, step=25), dict(loss=1.0, lr=0.1, step=50)]
    lines += [{'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5, 'step': 1}]
    lines += [dict(loss=0.5, lr=0.1, step=100), {'coco/bbox_mAP': 0.5, 'step': 2}]
    assert curves.evaluations(lines) == ('coco/bbox_mAP', [(50, 0.25), (100, 0.5)])
    assert curves.evaluations(lines[:2]) == ('', [])
    # 43 iterations in an epoch, of which the 25th is logged.
    losses = [dict(loss=1.0, lr=0.1, step=25 + 43 * n, epoch=n + 1) for n in range(3)]
    scores = [{'coco/bbox_mAP': 0.1 * n, 'step': n} for n in (1, 2, 3)]
    alternating = [line for pair in zip(losses, scores) for line in pair]
    assert [step for step, _ in curves.evaluations(alternating)[1]] == [43, 86, 129]
    by_iteration = [*lines[:2], dict(mIoU=40.0, step=60)]
    assert curves.evaluations(by_iteration)[1] == [(60, 0.4)]
    first = write_run(tmp_path / 'a' / 'run', lines)
    second = write_run(tmp_path / 'b' / 'run', [*lines[:2], dict(mIoU=40.0, step=50)])
    assert curves.draw_curves([first, second], tmp_path / 'curves.png').is_file()
    with pytest.raises(MissingFileError, match='holds no training run'):
        curves.draw_curves([tmp_path / 'none'], tmp_path / 'c.png')
    with pytest.raises(UserError, match='no loss yet'):
        curves.draw_curves([write_run(tmp_path / 'c', [])], tmp_path / 'c.png')


def test_f1_of_boxes():
    truth = instances([(0, 0, 10, 10), (20, 20, 40, 40)], labels=[0, 1])
    none = instances([])
    assert gallery.judge_instances(none, none, 0.3)[0] == 1
    assert gallery.judge_instances(none, truth, 0.3)[1] == 'F1 0.00: 0 of 0 found, 2 wrong'
    assert gallery.judge_instances(truth, none, 0.3) == (0, 'F1 0.00: 0 of 2 found, 0 wrong')
    # One right, the same once more, one of the wrong class, one under the threshold.
    boxes = [(0, 0, 10, 9), (0, 0, 10, 10), (20, 20, 40, 40), (20, 20, 40, 40)]
    found = instances(boxes, [0.9, 0.8, 0.7, 0.2], [0, 0, 0, 1])
    f1, summary = gallery.judge_instances(truth, found, 0.3)
    assert f1 == pytest.approx(2 / 5) and summary == 'F1 0.40: 1 of 2 found, 2 wrong'
    ignored = np.array([False, True])
    summary = gallery.judge_instances(truth, truth, 0.3, ignored)[1]
    assert summary == 'F1 1.00: 1 of 1 found, 0 wrong'
    points = instances([(5, 5, 5, 5)])  # of no area
    assert gallery.judge_instances(points, points, 0.3)[0] == 0


def test_miou_of_segments():
    truth = Segments(np.array([[0, 0, 1, 255]]))
    found = Segments(np.array([[0, 1, 1, 2]], np.uint8))
    score, summary = gallery.judge_segments(truth, found, 3)
    assert score == pytest.approx(0.5) and summary == 'mIoU 0.50 of 2 classes'
    assert gallery.judge_segments(Segments(np.full((1, 4), 255)), found, 3)[0] == 1


def draw(image, found, **style):
    """Draw without enlarging."""
    return overlay.draw_prediction(image, found, CLASSES, PALETTE, Style(longer_side=1, **style))


def test_boxes_are_drawn_where_they_are_and_labels_stay_inside():
    image = np.full((100, 120, 3), 128, np.uint8)
    found = instances([(30, 40, 80, 90), (100, 0, 130, 12)], [0.9, 0.8], [0, 2])
    picture = draw(image, found, score_thr=0.5)
    assert picture.shape == image.shape and (image == 128).all()
    assert tuple(picture[60, 31]) == PALETTE[0] and tuple(picture[89, 60]) != (128, 128, 128)
    assert (picture[60:80, 45:70] == 128).all()  # the box's inside is left as it is
    assert (draw(image, found, score_thr=0.95) == image).all()
    whole_label = (picture[:14] == PALETTE[2]).all(axis=2)
    assert whole_label.any(axis=1).sum() >= 12 and whole_label.any(axis=0).sum() > 25
    odd = [(-50, -50, 500, 500), (99, 99, 99, 99), (5, 5, 6, 6), (200, 200, 300, 300)]
    assert draw(image, instances(odd)).shape == image.shape


def test_masks_and_segments_are_tinted():
    image = np.zeros((300, 40, 3), np.uint8)
    mask = np.zeros((300, 40), bool)
    mask[250:290, 10:30] = True
    picture = draw(image, instances([(10, 250, 30, 290)], masks=[encode_mask(mask)]))
    assert picture[270, 20].sum() > 0 and (picture[100] == 0).all()
    segments = Segments(np.where(mask, 1, 255).astype(np.uint8))
    picture = draw(image, segments)
    expected = np.array(PALETTE[1]) * overlay.OPACITY
    assert np.abs(picture[270, 20] - expected).max() <= 1
    assert (picture[0] == 0).all()  # 255 is no class
    shown = overlay.with_legend(picture, segments, CLASSES, PALETTE)
    assert shown.shape[0] > 300 and (shown[300:] == PALETTE[1]).all(axis=2).any()
    assert not (shown[300:] == PALETTE[0]).all(axis=2).any()  # only what is there


def test_fitting_moves_everything_alike():
    image = np.zeros((50, 100, 3), np.uint8)
    mask = np.zeros((50, 100), bool)
    mask[10:20, 40:80] = True
    found = instances([(40, 10, 80, 20)], masks=[encode_mask(mask)])
    small, moved = overlay.fit(image, found, 200)
    assert small.shape == (100, 200, 3) and moved.boxes.tolist() == [[80, 20, 160, 40]]
    _, segments = overlay.fit(image, Segments(mask.astype(np.uint8)), 200)
    assert segments.label_map[20:40, 80:160].all() and segments.label_map.sum() == 20 * 80
    assert found.boxes.tolist() == [[40, 10, 80, 20]]


def test_options_of_drawing():
    image = np.full((100, 120, 3), 128, np.uint8)
    found = instances([(30, 40, 80, 90)], [0.9])

    def drawn(**options):
        return (draw(image, found, **options) != image).sum()

    assert drawn(line_width=6) > drawn() > drawn(hide_scores=True) > drawn(hide_labels=True) > 0
    large = overlay.draw_prediction(image, found, CLASSES, PALETTE)
    assert large.shape == (533, 640, 3)


def test_names_in_any_script(tmp_path, monkeypatch):
    monkeypatch.setattr(overlay, '_system_fonts', lambda: [])
    with pytest.warns(UserWarning, match='no font .* install one'):
        assert overlay.label_text('\u732b', 12)[0] == r'\u732b'
    assert overlay.label_text('Größe', 12)[0] == 'Größe'
    (tmp_path / 'bad.ttf').write_bytes(b'no font')
    folder = Path(matplotlib.get_data_path(), 'fonts', 'ttf')
    fonts = [str(tmp_path / 'bad.ttf'), str(folder / 'STIXGeneralBolIta.ttf')]
    monkeypatch.setattr(overlay, '_system_fonts', lambda: fonts)
    # An A in a circle, which matplotlib's default font does not have.
    text, font = overlay.label_text('\u24b6', 12)
    assert text == '\u24b6' and font.path == fonts[1]


def test_the_20_colours_stay_distinct():
    """Blended with grey, and as deuteranopes and protanopes see them (Machado et al., 2009)."""
    linear = np.array(class_palette(20)) * overlay.OPACITY + 128 * (1 - overlay.OPACITY)
    linear = np.where(linear > 10.3, ((linear / 255 + 0.055) / 1.055) ** 2.4, linear / 3294.6)
    seen = dict(
        all=np.eye(3),
        deuteranope=[[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        protanope=[[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    )
    for matrix in seen.values():
        rgb = (linear @ np.transpose(matrix)).clip(0, 1)
        srgb = np.where(rgb > 0.0031308, 1.055 * rgb ** (1 / 2.4) - 0.055, 12.92 * rgb)
        lab = cv2.cvtColor(np.float32(srgb[None]), cv2.COLOR_RGB2LAB)[0]
        distances = np.linalg.norm(lab[:, None] - lab, axis=2)
        assert distances[np.triu_indices(20, 1)].min() > 7  # 2.3 is just noticeable
