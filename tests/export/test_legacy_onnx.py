"""A user's own ``torch.onnx.export(dynamo=False)``, as mmdeploy does it, of models as they are."""

import warnings

import pytest
import torch

from cyclemlp_mm.models import CycleMLP, MPViT, to_deploy
from cyclemlp_mm.ops import CycleFC, cycle_shift

onnxruntime = pytest.importorskip('onnxruntime')

SHAPES = dict(depths=(1, 1, 1, 1), widths=(16, 24, 32, 40))


REWEIGHTED = dict(**SHAPES, mlp_ratios=(2, 1, 1, 1), reweight=True, downsample='conv')
SUMMED = dict(**SHAPES, mlp_ratios=(2, 1, 1, 1), reweight=False, downsample='patch_merging')


def repmlp():
    pytest.importorskip('mmpretrain')
    from cyclemlp_mm.models.repmlp import RepMLPNet

    arch = dict(channels=[16, 32, 32, 32], depths=[1, 1, 1, 1], sharesets_nums=[1, 2, 4, 8])
    return RepMLPNet(arch, img_size=64)


MODELS = {
    'reweighted': lambda: CycleMLP(REWEIGHTED),
    'summed': lambda: CycleMLP(SUMMED),
    'four bands': lambda: CycleMLP(SUMMED, in_channels=4),
    'folded': lambda: CycleMLP(REWEIGHTED, mixer_backend='folded'),
    'shift': lambda: CycleMLP(REWEIGHTED, mixer_backend='shift'),
    'mpvit': lambda: MPViT(dict(**SHAPES, paths=(2, 3, 3, 3), mlp_ratio=2)),
    'repmlp': repmlp,
}


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def exported(model, example, path, **options):
    """What onnxruntime makes of the file: a function of one tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of sizes that decide errors, and of the exporter itself
        torch.onnx.export(
            model, (example,), str(path), dynamo=False, input_names=['image'], **options
        )
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {'image': x.numpy()})]


def assert_equal(got, expected):
    expected = expected if isinstance(expected, (tuple, list)) else [expected]
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.few(4)
@pytest.mark.parametrize('opset', [11, 13, 17, 20])
@pytest.mark.parametrize('name', MODELS)
def test_the_file_equals_the_model(name, opset, tmp_path):
    model = build(name)
    for form in (model, to_deploy(build(name))):
        example, other = torch.randn(2, 1, getattr(model, 'in_channels', 3), 64, 96)
        run = exported(form, example, tmp_path / 'model.onnx', opset_version=opset)
        with torch.no_grad():
            assert_equal(run(other), model(other))


@pytest.mark.few(2)
@pytest.mark.parametrize('name', MODELS)
def test_named_axes_hold_at_other_sizes(name, tmp_path):
    model = build(name)
    channels = model.in_channels
    run = exported(
        model,
        torch.randn(1, channels, 64, 96),
        tmp_path / 'model.onnx',
        opset_version=17,
        dynamic_axes={'image': {0: 'batch', 2: 'height', 3: 'width'}},
    )
    # Both sides of the sizes from which on the model itself takes other forms.
    for batch, height, width in ((2, 131, 97), (1, 256, 320), (3, 32, 33)):
        image = torch.randn(batch, channels, height, width)
        with torch.no_grad():
            assert_equal(run(image), model(image))


@pytest.mark.parametrize('kernel_size', [(1, 3), (3, 1), (1, 7), (5, 1)])
@pytest.mark.parametrize('opset', [11, 18])
def test_a_layer_by_itself(kernel_size, opset, tmp_path):
    """Also where the map is smaller than the kernel reaches, and channels are no whole cycles."""

    class Shift(torch.nn.Module):
        def forward(self, x):
            return cycle_shift(x, kernel_size)

    x = torch.randn(2, 2, 3, 8)
    for layer in (CycleFC(8, 5, kernel_size), Shift()):
        run = exported(layer, torch.randn_like(x), tmp_path / 'layer.onnx', opset_version=opset)
        with torch.no_grad():
            assert_equal(run(x), layer(x))
