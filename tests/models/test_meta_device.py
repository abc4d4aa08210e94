"""Models built on the meta device: what to_empty() and init_weights() make of them."""

import copy

import pytest
import torch
from families import CFGS, MPVIT
from mmengine.registry import MODELS, init_default_scope
from torch import nn

CFGS = CFGS | {
    'frozen': dict(CFGS['summed'], frozen_stages=1),
    'group norm': dict(type='MPViT', arch=MPVIT, norm_cfg=dict(type='GN', num_groups=2)),
    'repmlp': dict(CFGS['repmlp'], reparam_conv_kernels=(1, 3)),
    'deployed': dict(CFGS['repmlp'], deploy=True),
}
three_families = pytest.mark.parametrize('name', ['reweighted', 'mpvit', 'repmlp'])


def cpu(name, **kwargs):
    return MODELS.build(copy.deepcopy({**CFGS[name], **kwargs}))


def tensors_of(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def build_empty(cfg):
    """On the meta device, then with memory that holds nothing of use."""
    with torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg))
    assert all(tensor.is_meta for tensor in tensors_of(model).values())
    model.to_empty(device='cpu')
    spoil(model)
    return model


def spoil(model, value=3):
    with torch.no_grad():
        for tensor in tensors_of(model).values():
            tensor.fill_(value)


def assert_alike(model, usual):
    """The same tensors where they are constant, elsewhere the same distribution."""
    ours, theirs = tensors_of(model), tensors_of(usual)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert tensor.requires_grad == other.requires_grad, name
        if other.unique().tolist() in ([0], [1]):
            assert torch.equal(tensor, other), name
        elif other.numel() >= 256:
            assert tensor.std().item() == pytest.approx(other.std().item(), rel=0.25), name
            assert abs(tensor.mean() - other.mean()) < 5 * other.std() / other.numel() ** 0.5, name
        else:
            assert tensor.abs().max() < 4 * other.abs().max(), name


@pytest.mark.parametrize('name', CFGS)
def test_a_model_without_values_is_initialised_as_on_the_cpu(name):
    usual, model = cpu(name), build_empty(CFGS[name])
    model.init_weights()
    assert_alike(model, usual)
    model.to('meta').to_empty(device='cpu')  # values can be lost later, too
    spoil(model)
    model.init_weights()
    assert_alike(model, usual)


@three_families
def test_a_file_is_loaded_into_a_model_without_values(name, tmp_path):
    cfg, file, saved = CFGS[name], str(tmp_path / 'weights.pth'), cpu(name)
    state_dict = saved.state_dict()
    norm = 'final_norm.' if name == 'repmlp' else 'norm0.'  # not in published files
    torch.save({k: t for k, t in state_dict.items() if not k.startswith(norm)}, file)
    cfg = dict(cfg, init_cfg=dict(type='Pretrained', checkpoint=file))
    model = build_empty(cfg)
    model.init_weights()
    for key, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    with torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg))
    with pytest.raises(RuntimeError, match=r'on the meta device.* to_empty\(device=…\)'):
        model.init_weights()  # the file would be read into nothing


def test_what_was_loaded_is_not_initialised_again():
    saved = cpu('reweighted')
    spoil(saved, 0.5)
    with torch.device('meta'):
        assigned = cpu('reweighted')
    assigned.load_state_dict(saved.state_dict(), assign=True)
    assigned.init_weights()
    assert all((tensor == 0.5).all() for tensor in tensors_of(assigned).values())
    state_dict = {n: t for n, t in saved.state_dict().items() if not n.startswith('norm')}
    model = build_empty(CFGS['reweighted'])
    model.load_state_dict(state_dict, strict=False)
    model.init_weights()
    for name, tensor in tensors_of(model).items():
        expected = 0.5 if name in state_dict else float(name.endswith('weight'))
        assert (tensor == expected).all(), name


@three_families
def test_init_weights_leaves_a_model_of_the_cpu_as_it_is(name):
    model = cpu(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    model.to(torch.float64).to(torch.float32).init_weights()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_a_layer_that_cannot_be_initialised_is_named():
    with torch.device('meta'):
        model = cpu('frozen')
        model.stages[0][0].scale = nn.ParameterList([nn.Parameter(torch.ones(3))])
    model.to_empty(device='cpu')
    message = r'stages\.0\.0\.scale \(ParameterList\) has no reset_parameters'
    with pytest.raises(RuntimeError, match=message):
        model.init_weights()


def test_a_classifier_without_values(log_lines):
    pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(CFGS['reweighted'], out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=8, in_channels=24),
    )
    model = build_empty(cfg)
    model.init_weights()
    usual = MODELS.build(copy.deepcopy(cfg))
    assert_alike(model.backbone, usual.backbone)
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.25)
    assert (model.head.fc.bias == 0).all()
    assert any('after to_empty()' in line for line in log_lines)


def test_a_teacher_without_values(tmp_path):
    pytest.importorskip('mmpretrain')
    from cyclemlp_mm.classification.teacher import FrozenTeacher

    init_default_scope('mmpretrain')
    backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    norm, file = dict(mean=[1.0] * 3, std=[2.0] * 3, to_rgb=True), str(tmp_path / 'teacher.pth')
    cfg = dict(
        type='ImageClassifier',
        data_preprocessor=norm,
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=64),
    )
    usual = FrozenTeacher(cfg, norm, file)
    torch.save(usual.model.state_dict(), file)
    model = FrozenTeacher(cfg, norm, file).to('meta').to_empty(device='cpu')
    spoil(model)
    usual.load()
    model.load()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(image), usual(image))
