"""Models built on the meta device: no values without an error."""

import copy

import pytest
import torch
from families import FAMILIES, build
from mmengine.registry import init_default_scope


@pytest.mark.parametrize('family', FAMILIES)
def test_values_come_from_a_whole_state_dict_or_not_at_all(family):
    saved = build(family)
    state = saved.state_dict()
    with torch.device('meta'):
        model = build(family)
    with pytest.raises(RuntimeError, match='built on the meta device, so it has no values'):
        model.init_weights()
    assigned = copy.deepcopy(model)
    assigned.load_state_dict(state, assign=True)
    assigned.init_weights()
    model.to_empty(device='cpu')
    model.load_state_dict(dict([*state.items()][:-1]), strict=False)
    with pytest.raises(RuntimeError, match='load a whole state dict'):
        model.init_weights()
    model.load_state_dict(state)
    model.init_weights()
    for one in (assigned, model):
        assert all(torch.equal(t, state[name]) for name, t in one.state_dict().items())


@pytest.mark.parametrize('family', FAMILIES)
def test_init_weights_leaves_a_model_of_the_cpu_as_it_is(family):
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    model.to(torch.float64).to(torch.float32).init_weights()
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_teacher_without_values(tmp_path):
    pytest.importorskip('mmpretrain')
    from cyclemlp_mm.classification.teacher import FrozenTeacher

    init_default_scope('mmpretrain')
    norm, file = dict(mean=[1.0] * 3, std=[2.0] * 3, to_rgb=True), str(tmp_path / 'teacher.pth')
    cfg = dict(
        type='ImageClassifier',
        data_preprocessor=norm,
        backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=64),
    )
    usual = FrozenTeacher(cfg, norm, file)
    torch.save(usual.model.state_dict(), file)
    model = FrozenTeacher(cfg, norm, file).to('meta').to_empty(device='cpu')
    usual.load()
    model.load()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(image), usual(image))
