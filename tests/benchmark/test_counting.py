"""Multiply-adds: formulas checked by hand, published figures met, and nothing counted as zero."""

import pytest
import torch
from torch import nn
from toy_models import ARCH

from benchmarking.published_form import published_form
from benchmarking.workloads import RIVALS, contender
from cyclemlp_mm.analysis import (
    MultiplyAdds,
    UncountedOperatorError,
    backbone_multiply_adds,
    multiply_adds,
)
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.ops import CycleFC

# Billions at 224 x 224, from the papers' tables; a CycleFC counts C x C per token.
CYCLEMLP = dict(b1=2.1, b2=3.9, b3=6.9, b4=10.1, b5=12.3, t=4.4, s=8.5, b=15.2)
# The same of torchvision's classifiers, from its own table of weights, 'GFLOPS'.
TORCHVISION = dict(
    resnet50='ResNet50_Weights', swin_t='Swin_T_Weights', convnext_t='ConvNeXt_Tiny_Weights'
)


def meta(module):
    return module.to('meta').eval()


def test_formulas_by_hand():
    image = torch.empty(2, 6, 9, 7, device='meta')
    tokens = torch.empty(2, 5, 6, device='meta')
    conv = meta(nn.Conv2d(6, 12, 3, padding=1, groups=3))
    assert multiply_adds(lambda: conv(image)) == 2 * 9 * 7 * 12 * (6 // 3) * 9
    linear = meta(nn.Linear(6, 4))
    assert multiply_adds(lambda: linear(tokens)) == 2 * 5 * 6 * 4
    assert multiply_adds(lambda: tokens @ tokens.transpose(1, 2)) == 2 * 5 * 6 * 5
    cycle = meta(CycleFC(6, 4, (1, 3)))
    assert multiply_adds(lambda: cycle(image.permute(0, 2, 3, 1))) == 2 * 9 * 7 * 6 * 4


def test_a_deformable_convolution_is_counted():
    torchvision = pytest.importorskip('torchvision')
    # On real memory, outside which torchvision reads where an offset is NaN: no torch.empty.
    image, offset = torch.zeros(1, 6, 9, 7), torch.zeros(1, 12, 9, 7)
    weight = torch.zeros(4, 6, 1, 1)
    call = lambda: torchvision.ops.deform_conv2d(image, offset, weight)  # noqa: E731
    assert multiply_adds(call) == 9 * 7 * 6 * 4


@pytest.mark.parametrize('arch', CYCLEMLP)
def test_published_figures(arch):
    with torch.device('meta'):
        backbone = CycleMLP(arch).eval()
    counted = backbone_multiply_adds(backbone, (1, 3, 224, 224)) / 1e9
    assert counted == pytest.approx(CYCLEMLP[arch], rel=0.015)


def test_the_published_form_counts_as_much_as_ours():
    ours = CycleMLP(ARCH).eval()
    published = published_form(ours).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = backbone_multiply_adds(meta(CycleMLP(ARCH)), (1, 3, 64, 96))
        assert multiply_adds(lambda: published(image)) == expected
    assert expected > 1e5


@pytest.mark.parametrize('name', RIVALS)
def test_the_rivals_agree_with_torchvisions_own_table(name):
    models = pytest.importorskip('torchvision.models')
    stated = getattr(models, TORCHVISION[name]).IMAGENET1K_V1.meta['_ops']
    counted = backbone_multiply_adds(meta(contender(name, '')), (1, 3, 224, 224)) / 1e9
    assert counted == pytest.approx(stated, rel=0.015)  # without the last Linear


def test_an_operator_without_a_formula_stops_the_count():
    matrix = torch.rand(3, 3)
    with pytest.raises(UncountedOperatorError, match=r'cannot count the operator aten\.\w*inv'):
        multiply_adds(lambda: torch.linalg.inv(matrix))

    @torch.library.custom_op('cyclemlp_mm_tests::mystery', mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    with pytest.raises(UncountedOperatorError, match=r'cyclemlp_mm_tests\.mystery'):
        multiply_adds(lambda: mystery(matrix))


def test_mmcvs_compiled_operators_are_refused_by_name():
    ops = pytest.importorskip('mmcv.ops')
    model = nn.Sequential(ops.ModulatedDeformConv2dPack(4, 4, 3))
    with pytest.raises(UncountedOperatorError, match=r'ModulatedDeformConv2dPack \(0\).*invisible'):
        backbone_multiply_adds(model, (1, 4, 8, 8))


def test_the_count_does_not_go_on_after_the_block():
    with MultiplyAdds() as counter:
        torch.rand(3, 3) @ torch.rand(3, 3)
    torch.rand(3, 3) @ torch.rand(3, 3)
    assert counter.total == 27
