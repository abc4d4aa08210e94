"""Exported files in the hands of others: old opsets, quantisation, images of four bands."""

import pytest
import torch
from torch import nn

from cyclemlp_mm.apis.get_flops import count_parts
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.export import ExportedPart, export_model
from cyclemlp_mm.export.check import onnx_runner
from cyclemlp_mm.models import CycleMLP, to_deploy

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

SHAPES = dict(depths=(1, 1, 1, 1), widths=(16, 24, 32, 40), mlp_ratios=(2, 1, 1, 1))
STYLES = {
    'b': dict(reweight=True, downsample='conv'),
    't': dict(reweight=False, downsample='patch_merging'),
}


class Model(nn.Module):
    """What a detector is to the exporter: something with a backbone."""

    def __init__(self, style, in_channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = CycleMLP(dict(**SHAPES, **STYLES[style]), in_channels=in_channels).eval()


@pytest.mark.parametrize(
    'opset, style',
    [
        (11, 't'),
        (20, 'b'),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(11, 'b'), (17, 'b'), (17, 't'), (18, 'b'), (18, 't'), (20, 't')]
        ),
    ],
)
def test_old_opsets_and_int8(style, opset, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path, small = tmp_path / 'model.onnx', tmp_path / 'int8.onnx'
    report = export_model(
        Model(style, in_channels=4), path, 'backbone', {'mean': '[1]'}, opset=opset
    )
    assert report.difference < 1e-5 and report.channels == 4
    model = onnx.load(str(path))
    assert [(o.domain, o.version) for o in model.opset_import] == [('', opset)]
    assert {p.key: p.value for p in model.metadata_props}['mean'] == '[1]'
    quantize_dynamic(
        str(path), str(small), weight_type=QuantType.QInt8, op_types_to_quantize=['MatMul', 'Gemm']
    )
    image = torch.randn(2, 4, 71, 133)
    for whole, quantised in zip(onnx_runner(path)(image), onnx_runner(small)(image), strict=True):
        assert torch.cosine_similarity(whole.flatten(), quantised.flatten(), dim=0) > 0.98


def test_an_opset_that_is_none(tmp_path):
    with pytest.raises(UserError, match='the opset must be 11 to 20, but got 21'):
        export_model(Model('b'), tmp_path / 'model.onnx', 'backbone', opset=21)


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('deploy', [False, True])
def test_export_of_the_model_itself(style, deploy, tmp_path):
    """By ``torch.export`` and the default of ``torch.onnx.export``, without gradients."""
    model = Model(style).backbone
    model = to_deploy(model) if deploy else model
    # Beyond the size from which on the model itself takes forms of its own.
    image, other = torch.randn(2, 1, 3, 256, 320)
    with torch.no_grad():
        expected = model(other)
        program = torch.export.export(model, (image,))
        for got, wanted in zip(program.module()(other), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        assert not any('mkldnn' in str(node.target) for node in program.graph.nodes)
        torch.onnx.export(model, (image,), str(tmp_path / 'model.onnx'), dynamo=True, verbose=False)
        for got, wanted in zip(onnx_runner(tmp_path / 'model.onnx')(other), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_four_bands_are_counted():
    with torch.device('meta'):
        three, four = Model('b'), Model('b', in_channels=4)
    more = count_parts(four, (64, 64))['backbone'] - count_parts(three, (64, 64))['backbone']
    assert more == 16 * 7 * 7 * 16 * 16  # of the stem: out, kernel, cells
    assert ExportedPart(four, 'backbone').channels == 4


@pytest.mark.skipif(
    not hasattr(torch.compiler, '_is_exporting_flag'), reason='PyTorch 2.7 or later'
)
@pytest.mark.parametrize('style', STYLES)
def test_no_choice_by_size_is_recorded(style):
    """Sizes on both sides of every choice that the fast forms make."""
    model = Model(style).backbone
    free = {axis: torch.export.Dim(name, min=32) for axis, name in ((2, 'height'), (3, 'width'))}
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.zeros(2, 3, 96, 128),), dynamic_shapes={'image': free}
        ).module()
        for size in ((32, 32), (32, 67), (131, 97), (256, 640)):
            image = torch.randn(2, 3, *size)
            for got, wanted in zip(program(image), model(image), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
