"""Distillation: the formula, and a teacher that is not part of the model."""

import copy
import math

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

pytest.importorskip('mmpretrain')

from mmpretrain.structures import DataSample

from cyclemlp_mm.classification import hard_distillation_loss, soft_distillation_loss
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.errors import CheckpointError, UserError

STUDENT = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 0.25]])
TEACHER = torch.tensor([[2.0, 0.0, -2.0], [-1.0, 3.0, 1.0]])
RESNET = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[10.0, 20.0, 30.0], std=[4.0, 5.0, 6.0], to_rgb=False),
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=64),
)


def softmax(row, tau):
    powers = [math.exp(value / tau) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_soft_loss_is_its_formula(tau):
    expected = 0.0
    for student, teacher in zip(STUDENT.tolist(), TEACHER.tolist()):
        p, q = softmax(teacher, tau), softmax(student, tau)
        expected += sum(a * math.log(a / b) for a, b in zip(p, q)) / 6  # 2 images, 3 classes
    got = soft_distillation_loss(STUDENT, TEACHER, tau)
    assert got.item() == pytest.approx(tau**2 * expected, rel=1e-6)
    assert soft_distillation_loss(TEACHER, TEACHER, tau).item() == pytest.approx(0.0, abs=1e-7)


def test_hard_loss_is_its_formula():
    labels = [0, 1]  # where the teacher's logits are largest
    rows = [softmax(row, 1.0) for row in STUDENT.tolist()]
    expected = -sum(math.log(row[label]) for row, label in zip(rows, labels)) / 2
    assert hard_distillation_loss(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-6)


def config(tmp_path, **changes):
    """The demo's student under a small ResNet, whose weights lie in a file."""
    init_default_scope('mmpretrain')
    cfg = load_config('cyclemlp_demo_distill')
    file = tmp_path / 'teacher.pth'
    if not file.exists():
        torch.save({'state_dict': MODELS.build(copy.deepcopy(RESNET)).state_dict()}, file)
    cfg.model.teacher = copy.deepcopy(RESNET)
    cfg.model.update(teacher_checkpoint=str(file), **changes)
    cfg.model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8)])
    return cfg


def build(tmp_path, **changes):
    model = MODELS.build(config(tmp_path, **changes).model)
    model.init_weights()
    return model


def images_and_labels():
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    return dict(inputs=images, data_samples=[DataSample().set_gt_label(i) for i in range(4)])


def batch(model):
    return model.data_preprocessor(images_and_labels(), training=True)


@pytest.mark.parametrize('kind', ['soft', 'hard'])
@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_the_whole_loss_is_its_formula(kind, alpha, tmp_path):
    model = build(tmp_path, distillation=kind, alpha=alpha, tau=2.0).train()
    data = batch(model)
    assert 'gt_score' in data['data_samples'][0]  # the images are mixed
    losses = model(**data, mode='loss')
    feats = model.extract_feat(data['inputs'])
    base = model.head.loss(feats, data['data_samples'])['loss']
    student, teacher = model.head(feats), model.teacher(data['inputs'])
    soft = soft_distillation_loss(student, teacher, 2.0)
    distill = hard_distillation_loss(student, teacher) if kind == 'hard' else soft
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, (1 - alpha) * base + alpha * distill)


def test_the_teacher_sees_the_images_as_it_was_trained(tmp_path):
    model = build(tmp_path)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)  # BGR, as loaded
    student_input = model.data_preprocessor(dict(inputs=images))['inputs']
    teacher = MODELS.build(copy.deepcopy(RESNET)).eval()
    teacher.load_state_dict(model.teacher.model.state_dict())
    with torch.no_grad():
        expected = teacher(teacher.data_preprocessor(dict(inputs=images))['inputs'], mode='tensor')
    torch.testing.assert_close(model.teacher(student_input), expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_frozen_and_no_part_of_the_model(tmp_path):
    model = build(tmp_path).train()
    teacher = model.teacher
    assert not teacher.training and not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    ids = {id(p) for p in teacher.parameters()}
    assert not ids & {id(p) for p in model.parameters()}
    assert not any('teacher' in name for name in model.state_dict())
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=1.0)))
    before = copy.deepcopy(teacher.model.state_dict())
    model.train_step(images_and_labels(), wrapper)
    trained = {id(p) for group in wrapper.optimizer.param_groups for p in group['params']}
    assert not ids & trained
    after = teacher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # BN statistics too
    sum(loss.sum() for loss in model(**batch(model), mode='loss').values()).backward()
    assert all(p.grad is not None for p in model.parameters())  # as DDP wants it
    assert copy.deepcopy(model).teacher is teacher  # an EMA copy holds no second one
    model.to(torch.float64)
    assert next(teacher.parameters()).dtype == torch.float64


@pytest.mark.parametrize('kind', ['soft', 'hard'])
def test_under_autocast(kind, tmp_path):
    model = build(tmp_path, distillation=kind).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(**batch(model), mode='loss')
    assert losses['loss_distill'].dtype == torch.float32
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_mistakes_are_said(tmp_path):
    for key, value in dict(distillation='warm', alpha=1.5, tau=0, temperature=2).items():
        with pytest.raises((ValueError, TypeError), match=key):
            build(tmp_path, **{key: value})
    cfg = config(tmp_path)
    model = MODELS.build(cfg.model).train()
    with pytest.raises(CheckpointError, match='no weights yet'):
        model(**batch(model), mode='loss')
    cfg.model.teacher.head.num_classes = 5
    with pytest.raises(CheckpointError, match=r'does not fit model.teacher \(.*size mismatch'):
        MODELS.build(cfg.model).init_weights()
    cfg.model.teacher.pop('head')
    with pytest.raises(UserError, match='classifier with a head'):
        MODELS.build(cfg.model)


def test_regnet_gets_bgr():
    """mmpretrain's RegNets take BGR with the student's own statistics: a flip and no more."""
    init_default_scope('mmpretrain')
    teacher = MODELS.build(load_config('cyclemlp_b1_distill_in1k').model).teacher
    assert teacher.flips
    np.testing.assert_allclose(teacher.scale.flatten(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(teacher.shift.flatten(), 0.0, atol=1e-6)
