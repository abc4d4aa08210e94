"""tools/export.py --quantize int8: a smaller file with its accuracy, or an error and no file."""

import re

import numpy as np
import pytest
import torch
from toy_models import save_classifier, save_segmentor

from cyclemlp_mm.apis.export import export
from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.export import ExportedPart, export_model
from cyclemlp_mm.export.check import runner
from cyclemlp_mm.export.quantize import quantize, run_by
from cyclemlp_mm.inference import Predictor

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')


@pytest.fixture(scope='session')
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp('classifier'))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Generated images: in COCO's layout, and the same ones in ADE20K's."""
    root = tmp_path_factory.mktemp('data')
    shapes.write_ade20k(root / 'ade20k', 6, 4, (96, 72))
    return shapes.write_coco(root / 'coco', 6, 4, (96, 72)), root / 'ade20k'


@pytest.fixture(scope='module')
def shapes_segmentor(tmp_path_factory):
    folder = tmp_path_factory.mktemp('segmentor')
    return save_segmentor(folder, classes=('background', *shapes.CLASSES))


PARTS = [
    ('detector', 'model'),
    ('detector', 'neck'),
    ('segmentor', 'model'),
    ('segmentor', 'backbone'),
    ('classifier', 'model'),
    pytest.param('mask_detector', 'model', marks=pytest.mark.slow),
]


@pytest.mark.parametrize('kind, part', PARTS)
def test_a_file_in_place_of_the_part_predicts_the_same(kind, part, data, tmp_path, request):
    """What is measured as the accuracy of a file is the file's own."""
    predictor = Predictor(*map(str, request.getfixturevalue(kind)), 'cpu')
    images = [predictor.read(path)[0] for path in sorted((data[0] / 'val2017').iterdir())]
    expected = predictor.predict(images)
    model = predictor.inferencer.model
    exported = ExportedPart(model, part)
    export_model(model, tmp_path / 'part.onnx', part, opset=17)
    run, calls = runner(tmp_path / 'part.onnx'), []
    run_by(model, exported, lambda image: calls.append(image) or run(image))
    for one, other in zip(expected, predictor.predict(images), strict=True):
        for name, value in vars(one).items():
            if name == 'masks':
                assert value == other.masks
            else:
                np.testing.assert_allclose(getattr(other, name), value, atol=1e-3)
    assert len(calls) == len(images)


CASES = [
    ('shapes_segmentor', 'model', 1, 'mIoU'),
    pytest.param('detector', 'model', 0, 'coco/bbox_mAP', marks=pytest.mark.slow),
    pytest.param('mask_detector', 'model', 0, 'coco/segm_mAP', marks=pytest.mark.slow),
    pytest.param('detector', 'neck', 0, 'coco/bbox_mAP', marks=pytest.mark.slow),
]


@pytest.mark.parametrize('kind, part, layout, metric', CASES)
def test_int8(kind, part, layout, metric, data, tmp_path, request, capsys):
    config, checkpoint = map(str, request.getfixturevalue(kind))
    path, folder = tmp_path / 'int8.onnx', data[0] / 'train2017'
    options = ['--part', part, '--quantize', 'int8', '--calibrate', str(folder), '--opset', '17']
    export([config, checkpoint, str(path), *options, '--data', str(data[layout])])
    printed = capsys.readouterr().out
    [pair] = re.findall(rf'{metric} ([\d.]+) -> ([\d.]+)', printed)
    assert abs(float(pair[0]) - float(pair[1])) <= 0.05 * max(map(float, pair)) + 0.02
    assert re.search(r'PyTorch [\d.]+ ms, float32 file [\d.]+ ms, int8 file [\d.]+ ms', printed)
    graph = onnx.load(str(path)).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in ('Conv', 'MatMul', 'Gemm')]
    weights = [node for node in products if made.get(node.input[1]) == 'DequantizeLinear']
    assert len(weights) > 5 and 'cyclemlp_mm' in {
        p.key for p in onnx.load(str(path)).metadata_props
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ['int8.onnx']


@pytest.mark.parametrize('channels, is_quantised', [(32, True), (24, False), (20, False)])
def test_numbers_of_channels_that_onnxruntime_gets_wrong_stay_in_float(
    channels, is_quantised, tmp_path
):
    """On a processor with AMX, products with 20 or 24 outputs would be wrong without an error."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, channels), torch.nn.Conv2d(3, channels, 3)

    class Model(torch.nn.Module):
        def forward(self, image):
            linear, conv = self.layers
            return linear(image.flatten(1)[:, :64]), conv(image)

    model, image = Model(), torch.randn(40, 3, 9, 9)
    model.layers = torch.nn.ModuleList(layers)
    names = dict(input_names=['image'], opset_version=17, dynamo=False)
    torch.onnx.export(model.eval(), image, str(tmp_path / 'float.onnx'), **names)
    quantize(tmp_path / 'float.onnx', tmp_path / 'int8.onnx', [image])
    for ours, theirs in zip(model(image), runner(tmp_path / 'int8.onnx')(image), strict=True):
        assert (ours - theirs).norm() < 0.05 * ours.norm()
    nodes = onnx.load(str(tmp_path / 'int8.onnx')).graph.node
    made = {output: node.op_type for node in nodes for output in node.output}
    products = [node for node in nodes if node.op_type in ('Conv', 'Gemm')]
    assert [made.get(n.input[1]) == 'DequantizeLinear' for n in products] == [is_quantised] * 2


def test_a_file_that_differs_too_much_is_not_written(segmentor, data, tmp_path, monkeypatch):
    monkeypatch.setattr('cyclemlp_mm.export.quantize.LIMIT', 1e-9)
    config, checkpoint = map(str, segmentor)
    options = ['--quantize', 'int8', '--calibrate', str(data[0] / 'train2017'), '--opset', '17']
    with pytest.raises(UserError, match=r'int8 differs from float32 by .*not written'):
        export([config, checkpoint, str(tmp_path / 'int8.onnx'), *options])
    assert not list(tmp_path.iterdir())


def test_whole_detectors_are_compared_by_their_ap(detector, data, tmp_path):
    options = ['--part', 'model', '--quantize', 'int8', '--calibrate', str(data[0] / 'train2017')]
    with pytest.raises(UserError, match='Give --data DIR'):
        export([*map(str, detector), str(tmp_path / 'a.onnx'), *options])


def test_options_that_do_not_go_together(segmentor, data, tmp_path):
    config, checkpoint = map(str, segmentor)
    folder, int8 = str(data[0] / 'train2017'), ['--quantize', 'int8']
    videos = tmp_path / 'videos'
    videos.mkdir()
    (videos / 'walk.mp4').touch()
    for dst, options, said in (
        ('a.onnx', int8, 'need each other'),
        ('a.onnx', ['--calibrate', folder], 'need each other'),
        ('a.onnx', ['--data', str(data[1])], '--data is for --quantize'),
        ('a.onnx', ['--ignore-label', '3'], '--ignore-label is for --quantize'),
        ('a.pt2', [*int8, '--calibrate', folder], 'writes .onnx of an opset from 13 on'),
        ('a.onnx', [*int8, '--calibrate', folder, '--opset', '12'], 'from 13 on'),
        ('a.onnx', [*int8, '--calibrate', str(tmp_path)], 'has no images'),
        ('a.onnx', [*int8, '--calibrate', str(videos)], 'holds videos only'),
        ('a.onnx', [*int8, '--calibrate', folder, '--data', folder], 'train2017'),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            export([config, checkpoint, str(tmp_path / dst), *options])
    assert list(tmp_path.iterdir()) == [videos]
