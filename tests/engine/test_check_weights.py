"""What is logged, and what is rejected, when a whole model's checkpoint is loaded."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from published_names import published_state_dict
from torch import nn

from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights.whole_model import for_mmengine

TINY = dict(depths=(1, 1, 1, 1), widths=(8, 12, 16, 20), mlp_ratios=(1, 1, 1, 1))
TINY.update(reweight=True, downsample='conv')
META = {'epoch': 1, 'iter': 4}
HUB = {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}


class Loop(BaseLoop):
    def __init__(self, names):
        self.dataloader = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=names)))

    def run(self):
        pass


class Detector(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.backbone = CycleMLP(TINY)
        self.bbox_head = nn.Sequential(nn.Linear(20, classes), nn.BatchNorm1d(classes))


def load(model, checkpoint, training=False, resume=False, names=None):
    """As Runner.load_checkpoint calls the hook; returns what was logged."""
    lines = []
    logger = logging.Logger('test')
    logger.info = logger.warning = lines.append
    runner = SimpleNamespace(
        model=model,
        logger=logger,
        work_dir='.',
        _load_from='file.pth',
        _resume=resume,
        _train_loop=Loop(names) if training else {},
        _test_loop={} if training else Loop(names),
    )
    HOOKS.build(dict(type='CheckLoadedWeights')).after_load_checkpoint(runner, checkpoint)
    return '\n'.join(lines)


@pytest.mark.parametrize('training, resume', [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
    'names', [('cat', 'dog', 'cow'), None, ('cat', 'cow', 'dog'), ('a', 'b', 'c')]
)
def test_other_classes_than_the_files(names, training, resume):
    """Rejected, but for a fine-tuning on other names, which is warned of."""
    model = Detector()
    meta = dict(META, dataset_meta=dict(classes=('cat', 'dog', 'cow')))
    checkpoint = whole(model, meta=meta)
    fine_tuned = training and not resume and names == ('a', 'b', 'c')
    if names in (None, ('cat', 'dog', 'cow')) or fine_tuned:
        logged = load(model, checkpoint, training, resume, names)
        assert ('was trained with the classes' in logged) == fine_tuned
    else:
        with pytest.raises(UserError, match=r'file\.pth was trained with the classes'):
            load(model, checkpoint, training, resume, names)


def whole(model, **kwargs):
    parts = dict(meta=META, message_hub=HUB, optimizer={})
    return {'state_dict': model.state_dict(), **parts, **kwargs}


def test_a_complete_file_is_taken_and_left_as_it_is():
    model = Detector()
    checkpoint = whole(model)
    state = checkpoint['state_dict']
    for mode in ({}, {'training': True}, {'training': True, 'resume': True}):
        said = load(model, checkpoint, **mode)
        assert said.startswith('loaded') and 'new' not in said
    assert checkpoint['state_dict'] is state  # with its _metadata


@pytest.mark.parametrize('part', ['backbone.stages.2', 'bbox_head.0'])
def test_tested_or_resumed_a_part_may_not_be_missing(part):
    model = Detector()
    checkpoint = whole(model)
    state = {n: t for n, t in checkpoint['state_dict'].items() if not n.startswith(part)}
    for mode in ({}, {'training': True, 'resume': True}):
        with pytest.raises(CheckpointError, match=rf'file\.pth does not fit.*missing.*{part}'):
            load(model, {**checkpoint, 'state_dict': state}, **mode)
    if part.startswith('backbone'):
        with pytest.raises(CheckpointError, match="backbone's tensors"):
            load(model, {**checkpoint, 'state_dict': state}, training=True)
    else:
        said = load(model, {**checkpoint, 'state_dict': state}, training=True)
        assert 'bbox_head: 4 of 6, the others are new' in said


def test_another_number_of_classes():
    checkpoint = whole(Detector(classes=5))
    assert 'bbox_head: 0 of 6, the others are new' in load(Detector(), checkpoint, training=True)
    with pytest.raises(CheckpointError, match=r'6 have another shape.*\(5, 20\).*\(3, 20\)'):
        load(Detector(), checkpoint)


def test_counters_of_batch_norm_may_be_missing_and_what_is_not_used_is_logged():
    model = Detector()
    state = {n: t for n, t in model.state_dict().items() if 'num_batches' not in n}
    said = load(model, {'state_dict': {**state, 'teacher.w': torch.ones(1)}})
    assert said.startswith('loaded') and 'not used: 1 (teacher)' in said


def test_nothing_fits():
    for mode in ({}, {'training': True}):
        with pytest.raises(CheckpointError, match=r'none of its 1 tensors does.*conv1.*backbone'):
            load(Detector(), {'state_dict': {'conv1.weight': torch.ones(1)}}, **mode)


@pytest.mark.parametrize('wrapped', [True, False])
def test_a_backbones_file_in_training(wrapped):
    model = Detector()
    state = model.backbone.state_dict()
    checkpoint = {'state_dict': state} if wrapped else dict(state)
    said = load(model, checkpoint, training=True)
    assert 'bbox_head: 0 of 6' in said and 'backbone:' not in said
    assert set(checkpoint['state_dict']) == {f'backbone.{name}' for name in state}


def test_a_published_classifier_in_training():
    model = Detector()
    content = for_mmengine({'model': published_state_dict(model.backbone, classifier=7)}, 'x')
    said = load(model, content, training=True)
    assert 'not used: 2 (head)' in said
    assert 'backbone:' in said  # the dense output norms are new


@pytest.mark.parametrize('resume', [False, True])
def test_weights_that_are_no_numbers(resume):
    model = Detector()
    checkpoint = whole(model)
    checkpoint['state_dict']['backbone.stem.proj.bias'][0] = float('nan')
    with pytest.raises(CheckpointError, match=r'nan or inf in 1 tensor, e\.g\..*stem\.proj\.bias'):
        load(model, checkpoint, training=resume, resume=resume)


def test_a_file_without_names_of_classes():
    model = Detector()
    said = load(model, dict(whole(model), meta={}), names=('a', 'b', 'c'))
    assert 'file.pth names no classes' in said


@pytest.mark.parametrize(
    'part, value, said',
    [
        ('meta', {}, ''),
        ('meta', None, ''),
        ('meta', {'epoch': 'x', 'iter': 1}, ''),
        ('message_hub', None, ''),
        ('message_hub', {}, ''),
        # Of best_*.pth: the optimiser and the schedule would begin again.
        ('optimizer', None, 'lacks the state of the optimiser'),
    ],
)
def test_a_best_checkpoint_or_weights_alone_cannot_be_resumed(part, value, said):
    model = Detector()
    checkpoint = whole(model, **{part: value})
    if part == 'optimizer':
        del checkpoint['optimizer']
    with pytest.raises(CheckpointError, match=rf'cannot be resumed.*{said}.*load_from=FILE'):
        load(model, checkpoint, training=True, resume=True)
