"""Deploy mode: same outputs, less to compute, twice the same."""

import copy
import io
import pickle

import pytest
import torch
from families import MPVIT, assert_equal_levels, build, step, trained
from mixer_cases import worst
from mmengine.registry import MODELS
from plain_mpvit import randomise_norms
from torch import nn

from cyclemlp_mm.models import to_deploy


def batch_norms(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@torch.no_grad()
def check(model, size=(2, 3, 70, 90)):
    """Returns the names of the tensors before and after."""
    image = torch.randn(*size, dtype=torch.float64)
    randomise_norms(model).double().eval()
    names, before = list(model.state_dict()), model(image)
    assert to_deploy(model) is model and not model.training
    after = model(image)
    to_deploy(model)
    assert_equal_levels(model(image), after)
    assert all(worst(b, a) < 1e-12 for a, b in zip(before, after, strict=True))
    return names, list(model.state_dict())


def test_mpvit_has_no_batch_norm_left():
    model = build('mpvit')
    check(model)
    assert batch_norms(model) == 0


def test_mpvit_with_group_norm_stays_as_it_is():
    before, after = check(build('mpvit', norm_cfg=dict(type='GN', num_groups=2)))
    assert before == after


@pytest.mark.parametrize('family', ['reweighted', 'summed'])
def test_cyclemlp_keeps_its_state_dict(family):
    model = build(family)
    before, after = check(model)
    assert before == after
    mixers = [m for m in model.modules() if hasattr(m, 'matrix')]
    assert len(mixers) == 4
    assert all((m.matrix is None) == (family == 'reweighted') for m in mixers)
    model.train()  # the weights are about to change
    assert all(m.matrix is None for m in mixers)


def test_repmlp_and_mmcv_convolutions():
    model = build('repmlp', img_size=(64, 96))
    check(model)
    # Left: two norms per unit and the output norms, which have no convolution ahead of them.
    assert batch_norms(model) == 2 * 4 + 4


@pytest.mark.parametrize('family', ['reweighted', 'summed', 'mpvit', 'repmlp'])
@torch.no_grad()
def test_folded_weights_fit_another_folded_model(family):
    model = to_deploy(trained(family))
    other = build(family, deploy=True) if family == 'repmlp' else trained(family, seed=1)
    to_deploy(other).load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 70, 90)
    assert_equal_levels(model(image), other(image))


@torch.no_grad()
def test_a_whole_segmentor():
    pytest.importorskip('mmseg')
    from mmengine.registry import init_default_scope

    from cyclemlp_mm.engine import load_config, require_toolbox

    cfg = load_config('upernet_mpvit_small_512x512_160k_ade20k')
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.update(arch=MPVIT, init_cfg=None)
    cfg.model.decode_head.update(in_channels=[16, 16, 24, 24], channels=16)
    cfg.model.auxiliary_head.update(in_channels=24, channels=16)
    model = randomise_norms(MODELS.build(cfg.model)).double().eval()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    before = model(image, mode='tensor')
    after = to_deploy(model)(image, mode='tensor')
    assert worst(after, before) < 1e-12 and batch_norms(model) == 0


def test_shared_convolutions_with_norms_of_their_own_stay():
    pytest.importorskip('mmcv')
    from mmcv.cnn import ConvModule

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            cfg = dict(norm_cfg=dict(type='BN'), act_cfg=None)
            self.one, self.two = ConvModule(3, 3, 1, **cfg), ConvModule(3, 3, 1, **cfg)
            self.two.conv = self.one.conv

        def forward(self, x):
            return self.one(x), self.two(x)

    head = Head()
    check(head, (1, 3, 4, 4))
    assert batch_norms(head) == 2


def in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(1.5)


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight.mul_(1.5)


def replaced(layer):
    layer.weight = nn.Parameter(layer.weight.detach() * 1.5)


def other_data(layer):
    layer.weight.data = layer.weight.data * 1.5


def loaded(layer, **kwargs):
    state = {name: tensor * 1.5 for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, **kwargs)


def assigned(layer):
    loaded(layer, assign=True)


def made_in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight = nn.Parameter(layer.weight * 1.5, requires_grad=False)
    with torch.inference_mode():
        layer.weight.mul_(1.5)


CHANGES = [
    in_place,
    in_inference_mode,
    replaced,
    other_data,
    loaded,
    assigned,
    made_in_inference_mode,
]


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('layer', ['mlp_c', 'sfc_h', 'sfc_w', 'proj'])
@torch.no_grad()
def test_weights_that_change_after_folding_take_effect(change, layer):
    model = build('summed').double().eval()
    deployed = to_deploy(copy.deepcopy(model))
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before = deployed(image)
    for one in (model, deployed):
        change(getattr(one.stages[1][0].mixer, layer))
    assert deployed.stages[1][0].mixer.matrix is not None
    after = deployed(image)
    assert worst(after[1], before[1]) > 1e-6
    assert all(worst(a, b) < 1e-12 for a, b in zip(after, model(image), strict=True))
    assert_equal_levels(deployed(image), after)


@pytest.mark.parametrize('family', ['mpvit', 'repmlp', 'summed'])
@torch.no_grad()
def test_every_parameter_left_by_folding_is_used(family):
    model = to_deploy(trained(family).double())
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before = model(image)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.add_(torch.rand_like(parameter))
        after = model(image)
        assert any((a != b).any() for a, b in zip(after, before, strict=True)), name
        parameter.copy_(kept)
    assert_equal_levels(model(image), before)


def test_gradients_of_a_folded_model():
    model = build('summed').double().eval()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    grads = [step(one, image)[1] for one in (model, to_deploy(copy.deepcopy(model)))]
    assert all(worst(grads[1][name], grad) < 1e-9 for name, grad in grads[0].items())


@pytest.mark.parametrize('family', ['reweighted', 'summed'])
@torch.no_grad()
def test_copies_of_a_folded_model(family):
    model = to_deploy(build(family))
    image = torch.randn(1, 3, 64, 64)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    load = dict(weights_only=False) if 'weights_only' in torch.load.__kwdefaults__ else {}
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, **load),
        nn.DataParallel(model),
    ]
    expected = model(image)
    for one in copies:
        assert_equal_levels(one(image), expected)
    double = copies[0].double()
    levels = double(image.double())
    assert all(worst(a, b) < 1e-5 for a, b in zip(expected, levels, strict=True))
    exact = copy.deepcopy(double).train().eval()(image.double())
    assert all(worst(a, b) < 1e-12 for a, b in zip(levels, exact, strict=True))


def test_layers_that_were_changed_are_not_folded():
    class Plus(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    model = trained('repmlp').double()
    blocks = [m for m in model.modules() if hasattr(m, 'local_inject')]
    ffn = next(m for m in model.modules() if hasattr(m, 'ffn_block')).ffn_block
    conv = next(m for m in ffn.modules() if isinstance(m, nn.Conv2d))
    seen = []
    model.patch_embed.projection.__class__ = Plus
    blocks[0].fc3.__class__ = Plus
    blocks[1].repconv3.conv.register_forward_hook(lambda *_: seen.append('repconv3'))
    conv.register_forward_hook(lambda module, inputs, output: output + 1)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model(image)
        after = to_deploy(model)(image)
    assert all(worst(a, b) < 1e-12 for a, b in zip(after, before, strict=True))
    assert seen == ['repconv3'] * 2
    assert [block.deploy for block in blocks[:3]] == [False, False, True]
