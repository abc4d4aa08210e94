"""Multiply-adds: formulas checked by hand, published figures met, and nothing counted as zero."""

import pytest
import torch
from torch import nn
from toy_models import ARCH

from benchmarking.published_form import published_form
from cyclemlp_mm.analysis import MultiplyAdds, backbone_multiply_adds, multiply_adds
from cyclemlp_mm.analysis import UncountedOperatorError as Uncounted
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.ops import CycleFC

# Billions at 224 x 224, from the papers' tables; a CycleFC counts C x C per token.
CYCLEMLP = dict(b1=2.1, b2=3.9, b3=6.9, b4=10.1, b5=12.3, t=4.4, s=8.5, b=15.2)


def meta(module):
    return module.to('meta').eval()


def test_formulas_by_hand():
    torchvision = pytest.importorskip('torchvision')
    image = torch.empty(2, 6, 9, 7, device='meta')
    tokens = torch.empty(2, 5, 6, device='meta')
    conv, linear = meta(nn.Conv2d(6, 12, 3, padding=1, groups=3)), meta(nn.Linear(6, 4))
    cycle = meta(CycleFC(6, 4, (1, 3)))
    # On real memory, outside which torchvision reads where an offset is NaN: no torch.empty.
    deformed = torch.zeros(1, 6, 9, 7), torch.zeros(1, 12, 9, 7), torch.zeros(4, 6, 1, 1)
    for call, expected in (
        (lambda: conv(image), 2 * 9 * 7 * 12 * (6 // 3) * 9),
        (lambda: linear(tokens), 2 * 5 * 6 * 4),
        (lambda: tokens @ tokens.transpose(1, 2), 2 * 5 * 6 * 5),
        (lambda: cycle(image.permute(0, 2, 3, 1)), 2 * 9 * 7 * 6 * 4),
        (lambda: torchvision.ops.deform_conv2d(*deformed), 9 * 7 * 6 * 4),
    ):
        assert multiply_adds(call) == expected


@pytest.mark.parametrize('arch', CYCLEMLP)
def test_published_figures(arch):
    with torch.device('meta'):
        backbone = CycleMLP(arch).eval()
    counted = backbone_multiply_adds(backbone, (1, 3, 224, 224)) / 1e9
    assert counted == pytest.approx(CYCLEMLP[arch], rel=0.015)


def test_the_published_form_counts_as_much_as_ours():
    published, image = published_form(CycleMLP(ARCH)).eval(), torch.rand(1, 3, 64, 96)
    expected = backbone_multiply_adds(meta(CycleMLP(ARCH)), image.shape)
    assert multiply_adds(lambda: published(image)) == expected > 1e5


def test_what_cannot_be_counted_is_an_error():
    ops, matrix = pytest.importorskip('mmcv.ops'), torch.rand(3, 3)

    @torch.library.custom_op('cyclemlp_mm_tests::mystery', mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    with pytest.raises(Uncounted, match=r'cannot count the operator aten\.\w*inv'):
        multiply_adds(lambda: torch.linalg.inv(matrix))
    with pytest.raises(Uncounted, match=r'cyclemlp_mm_tests\.mystery'):
        multiply_adds(lambda: mystery(matrix))
    model = nn.Sequential(ops.ModulatedDeformConv2dPack(4, 4, 3))
    with pytest.raises(Uncounted, match=r'ModulatedDeformConv2dPack \(0\).*invisible'):
        backbone_multiply_adds(model, (1, 4, 8, 8))


def test_the_count_does_not_go_on_after_the_block():
    with MultiplyAdds() as counter:
        torch.rand(3, 3) @ torch.rand(3, 3)
    torch.rand(3, 3) @ torch.rand(3, 3)
    assert counter.total == 27
