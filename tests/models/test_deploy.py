"""Deploy mode: same outputs, less to compute, twice the same."""

import copy
import pickle

import pytest
import torch
from families import assert_equal_levels, build, step, trained
from mixer_cases import worst
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


@pytest.mark.parametrize('shared', [True, False])
def test_convolutions_of_mmcv_are_folded_unless_they_are_shared(shared):
    conv_module = pytest.importorskip('mmcv.cnn').ConvModule
    head = nn.ModuleList(conv_module(3, 3, 1, norm_cfg=dict(type='BN')) for _ in range(2))
    if shared:
        head[1].conv = head[0].conv
    head.forward = lambda x: [part(x) for part in head]
    check(head, (1, 3, 4, 4))
    assert batch_norms(head) == 2 * shared


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


def loaded(layer, assign=False):
    state = {name: tensor * 1.5 for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, **(dict(assign=True) if assign else {}))


def assigned(layer):
    loaded(layer, assign=True)


CHANGES = [in_place, in_inference_mode, replaced, other_data, loaded, assigned]


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


@pytest.mark.slow
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


@pytest.mark.parametrize('family', ['reweighted', 'summed'])
def test_copies_and_gradients_of_a_folded_model(family):
    trained_model = build(family).double().eval()
    model = to_deploy(copy.deepcopy(trained_model))
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    grads = [step(one, image)[1] for one in (trained_model, model)]
    assert all(worst(grads[1][name], grad) < 1e-9 for name, grad in grads[0].items())
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nn.DataParallel(model)
    with torch.no_grad():
        for one in copies:
            assert_equal_levels(one(image), model(image))
        single = copies[0].float()(image.float())
        assert all(worst(a, b) < 1e-5 for a, b in zip(single, model(image), strict=True))


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
