"""The form to be exported, and files in the hands of others: old opsets, quantisation, tracing."""

import pytest
import torch
from families import MPVIT as TINY
from plain_mpvit import randomise_norms
from torch import nn

from cyclemlp_mm.analysis import count_parts
from cyclemlp_mm.export import ExportedPart, export_model, plain_form
from cyclemlp_mm.export.check import runner
from cyclemlp_mm.export.plain import FoldedMixer, PlainAdaptiveAvgPool2d
from cyclemlp_mm.models import CycleMLP, MPViT, to_deploy

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

# Multiples of 16: on CPUs with AMX, onnxruntime 1.23's int8 product is wrong for other widths.
SHAPES = dict(depths=(1, 1, 1, 1), widths=(16, 32, 48, 64), mlp_ratios=(2, 1, 1, 1))
STYLES = {
    'b': dict(reweight=True, downsample='conv'),
    't': dict(reweight=False, downsample='patch_merging'),
}


class Model(nn.Module):
    """What a detector is to the exporter: something with a backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone.eval()


def cyclemlp(style, **options):
    torch.manual_seed(0)
    model = CycleMLP(dict(**SHAPES, **STYLES[style]), **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    return model


def assert_equal(got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


SLOW = [(11, 'b'), (17, 'b'), (17, 't'), (18, 'b'), (18, 't'), (20, 't')]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.slow
@pytest.mark.parametrize('opset, style', [(11, 't'), (20, 'b'), *SLOW])
def test_old_opsets_and_int8(style, opset, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path, small = tmp_path / 'model.onnx', tmp_path / 'int8.onnx'
    model = Model(cyclemlp(style, in_channels=4))
    options = dict(opset=opset, constant_weights=True)
    report = export_model(model, path, 'backbone', {'mean': '[1]'}, **options)
    assert report.difference < 1e-5 and report.channels == 4
    file = onnx.load(str(path))
    assert [(o.domain, o.version) for o in file.opset_import] == [('', opset)]
    assert {p.key: p.value for p in file.metadata_props}['mean'] == '[1]'
    options = dict(weight_type=QuantType.QInt8, op_types_to_quantize=['MatMul', 'Gemm'])
    quantize_dynamic(str(path), str(small), **options)
    # Every product has constant weights, so all of them are quantised.
    products = [n.op_type for n in onnx.load(str(small)).graph.node]
    least = 24 if style == 'b' else 15  # folded, a mixer is one product
    assert products.count('MatMulInteger') >= least and 'MatMul' not in products
    image = torch.randn(2, 4, 71, 133)
    for whole, quantised in zip(runner(path)(image), runner(small)(image), strict=True):
        assert torch.cosine_similarity(whole.flatten(), quantised.flatten(), dim=0) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize('deploy, suffix', [(False, '.pt2'), (True, '.onnx')])
def test_mpvit(deploy, suffix, tmp_path):
    """Recorded from its plain operations, checked against its fast ones."""
    model = Model(randomise_norms(MPViT(TINY)))
    model = to_deploy(model) if deploy else model
    report = export_model(model, tmp_path / f'mpvit{suffix}', 'backbone')
    assert report.path.is_file() and report.difference < 1e-5


@pytest.mark.few(1)
@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('deploy', [False, True])
def test_export_of_the_model_itself(style, deploy, tmp_path):
    """By ``torch.export`` and the default of ``torch.onnx.export``, without gradients."""
    model = to_deploy(cyclemlp(style)) if deploy else cyclemlp(style)
    # Beyond the size from which on the model itself takes forms of its own.
    image, other = torch.randn(2, 1, 3, 256, 320)
    with torch.no_grad():
        program = torch.export.export(model, (image,))
        assert_equal(program.module()(other), model(other))
        assert not any('mkldnn' in str(node.target) for node in program.graph.nodes)
        torch.onnx.export(model, (image,), str(tmp_path / 'model.onnx'), dynamo=True, verbose=False)
        assert_equal(runner(tmp_path / 'model.onnx')(other), model(other))


def test_four_bands_are_counted():
    with torch.device('meta'):
        three, four = (Model(CycleMLP('b1', in_channels=bands)) for bands in (3, 4))
    more = count_parts(four, (64, 64))['backbone'] - count_parts(three, (64, 64))['backbone']
    assert more == 64 * 7 * 7 * 16 * 16  # of the stem: out, kernel, cells
    assert ExportedPart(four, 'backbone').channels == 4


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.compiler, '_is_exporting_flag'), reason='PyTorch 2.7 or later'
)
@pytest.mark.parametrize('style', STYLES)
def test_no_choice_by_size_is_recorded(style):
    """Sizes on both sides of every choice that the fast forms make."""
    model = cyclemlp(style)
    free = {axis: torch.export.Dim(name, min=32) for axis, name in ((2, 'height'), (3, 'width'))}
    with torch.no_grad():
        example = (torch.zeros(2, 3, 96, 128),)
        program = torch.export.export(model, example, dynamic_shapes={'image': free}).module()
        for size in ((32, 32), (32, 67), (131, 97), (256, 640)):
            image = torch.randn(2, 3, *size)
            assert_equal(program(image), model(image))


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('constant_weights, widest', [(True, 384), (False, 384), (False, 40)])
def test_the_plain_form(style, constant_weights, widest, tmp_path, monkeypatch):
    """A copy, equal to the model; traced by TorchScript, it holds at other sizes."""
    monkeypatch.setattr(FoldedMixer, 'MAX_FOLDED_CHANNELS', widest)
    model = cyclemlp(style, drop_path_rate=0.1)
    plain = plain_form(model.train(), constant_weights)
    folded = [m for m in plain.modules() if isinstance(m, FoldedMixer)]
    assert len(folded) == (0 if constant_weights and style == 'b' else 4)
    assert not plain.training and model.training
    model.eval()
    with torch.no_grad():
        torch.jit.trace(plain, torch.randn(1, 3, 64, 64)).save(tmp_path / 'traced.pt')
        traced = torch.jit.load(tmp_path / 'traced.pt')
        for size in ((64, 96), (131, 97), (36, 45)):
            image = torch.randn(3, 3, *size)
            assert_equal(plain(image), model(image))
            assert_equal(traced(image), model(image))


def test_the_plain_form_calls_layers_with_hooks():
    model = cyclemlp('b')
    model.stages[3][0].mixer.sfc_h.register_forward_hook(lambda layer, x, y: y + 1)
    image = torch.randn(1, 3, 64, 64)
    for constant_weights in (True, False):
        with torch.no_grad():
            assert_equal(plain_form(model, constant_weights)(image), model(image))


@pytest.mark.parametrize('cells', [1, 2, 3, 6, (2, 5)])
@pytest.mark.parametrize('size', [(7, 12), (6, 6), (13, 3)])
def test_adaptive_pooling(cells, size):
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = nn.AdaptiveAvgPool2d(cells)(x)
    torch.testing.assert_close(PlainAdaptiveAvgPool2d(cells)(x), expected)
