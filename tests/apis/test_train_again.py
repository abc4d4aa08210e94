"""A second training in a work dir, one with nothing left to do, and one that learned nothing."""

import itertools
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner

from cyclemlp_mm.apis.train import train
from cyclemlp_mm.engine import make_robust
from cyclemlp_mm.engine.hooks.stop import NonFiniteLossError
from cyclemlp_mm.engine.runner.resume import run_training
from cyclemlp_mm.engine.summary import run_summary
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.weights import install_safe_loading

DEMO = 'retinanet_cyclemlp_demo'
OLD = {'epoch_1.pth', 'iter_40.pth', 'epoch_2_iter_7.pth', 'best_coco_bbox_mAP_epoch_1.pth'}
OTHERS = {'CycleMLP_B1.pth', 'notes.txt', f'{DEMO}.py'}


@pytest.fixture
def work_dir(tmp_path, monkeypatch):
    """With an earlier training's files, and what else a user may have put there."""
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'wd'
    folder.mkdir()
    for name in (*OLD, *OTHERS):
        (folder / name).write_text(name)
    (folder / 'last_checkpoint').write_text('wd/epoch_1.pth')
    return folder


@pytest.fixture
def start(work_dir, monkeypatch):
    """Begin a training; returns what it would log."""
    logged = []

    def stop(*_):
        raise UserError('far enough')

    monkeypatch.setattr('cyclemlp_mm.apis.train.build_runner', lambda *_: None)
    monkeypatch.setattr('cyclemlp_mm.apis.train.log', lambda _, lines: logged.extend(lines))
    monkeypatch.setattr('cyclemlp_mm.apis.train.progress_bar', stop)

    def begin(*arguments, match='far enough'):
        with pytest.raises(UserError, match=match):
            train([DEMO, '--work-dir', 'wd', '--skip-check', *arguments])
        return '\n'.join(logged)

    return begin


def test_checkpoints_of_an_earlier_training_are_moved(work_dir, start):
    logged = start()
    assert 'had 4 checkpoints of an earlier training' in logged and '--resume' in logged
    [moved] = work_dir.glob('earlier_*')
    assert {path.name for path in moved.iterdir()} == {*OLD, 'last_checkpoint', f'{DEMO}.py'}
    assert (moved / 'epoch_1.pth').read_text() == 'epoch_1.pth'
    assert {path.name for path in work_dir.iterdir()} == {*OTHERS, moved.name}
    (work_dir / 'epoch_1.pth').write_text('of the second')
    start()
    assert len(list(work_dir.glob('earlier_*'))) == 2


def test_a_training_that_is_resumed_moves_nothing(work_dir, start):
    meta = dict(iter=1, epoch=1)
    content = dict(meta=meta, state_dict={}, optimizer={}, message_hub={})
    torch.save(content, work_dir / 'epoch_1.pth')
    start('--resume', 'wd/epoch_1.pth')
    assert not list(work_dir.glob('earlier_*'))


@pytest.mark.parametrize('key', ['load_from', 'model.backbone.init_cfg.checkpoint'])
def test_a_checkpoint_that_is_needed_is_not_moved(work_dir, start, key):
    torch.save(dict(state_dict={'a': torch.ones(1)}), work_dir / 'iter_40.pth')
    message = rf'{re.escape(key)} is .*iter_40\.pth.* another --work-dir'
    start('--cfg-options', f'{key}=wd/iter_40.pth', match=message)
    assert (work_dir / 'iter_40.pth').exists()


class Toy(BaseModel):
    """Its loss is the input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='loss'):
        return dict(loss=(self.weight * inputs).sum())


NUMBERS = itertools.count()  # mmengine keeps loggers and visualizers by their names


def toy_runner(folder, losses=(1, 1), max_iters=None, resume=None, optimizer=None, schedule=None):
    cfg = Config(dict(train_cfg=dict(by_epoch=False, max_iters=max_iters or len(losses))))
    make_robust(cfg)
    name = f'toy_{next(NUMBERS)}'
    hooks = [hook for hook in cfg.custom_hooks if hook.type == 'StopOnNonFiniteLoss']
    images = [dict(inputs=torch.tensor([float(loss)])) for loss in losses]
    return Runner(
        model=Toy(),
        work_dir=str(folder),
        experiment_name=name,
        cfg=cfg,
        train_dataloader=torch.utils.data.DataLoader(images),
        optim_wrapper=dict(optimizer=optimizer or dict(type='SGD', lr=0.1)),
        param_scheduler=schedule,
        train_cfg=cfg.train_cfg,
        default_hooks=dict(checkpoint=dict(cfg.default_hooks.checkpoint, by_epoch=False)),
        custom_hooks=[*hooks, dict(type='CheckLoadedWeights')],
        visualizer=dict(type='Visualizer', name=name, vis_backends=[]),
        resume=resume is not None,
        load_from=resume and str(resume),
    )


def trained_toy(folder, **settings):
    """The checkpoint of two iterations, with which a third one trains."""
    toy_runner(folder, **settings).train()
    saved = next(folder.glob('*_2.pth'))
    longer = toy_runner(folder, max_iters=3, resume=saved, **settings)
    longer.train()
    assert 'nothing was left' not in run_summary(longer) and longer.iter == 3
    return saved


def resume_toy(file, content, **settings):
    """Train on from changed content; the error names the file."""
    torch.save(content, file)
    runner = toy_runner(file.parent, max_iters=3, resume=file, **settings)
    run_training(runner)
    assert runner.iter == 3


def test_losses_that_are_not_finite(tmp_path):
    runner = toy_runner(tmp_path, ['nan', 'inf', '-inf', 'nan'])
    with pytest.raises(NonFiniteLossError, match='4 of 4 iterations'):
        runner.train()
    assert runner.model.weight == 1
    runner, lines = toy_runner(tmp_path, ['nan', 1, 'nan']), []
    runner.logger.warning = lambda text, *rest: lines.append(text)
    runner.train()
    assert any('2 of 3 iterations had a loss that is not finite' in line for line in lines)


def test_a_resumed_training_with_nothing_left_says_so(tmp_path):
    again = toy_runner(tmp_path, resume=trained_toy(tmp_path))
    again.train()
    nothing = 'nothing was left to train: the checkpoint is at 2, and train_cfg.max_iters is 2.'
    assert run_summary(again).startswith(nothing)


def test_a_later_error_of_a_resumed_training_keeps_its_type(tmp_path):
    runner = toy_runner(tmp_path, max_iters=5, resume=trained_toy(tmp_path))

    def fail(*_):
        if runner.iter == 3:  # the second iteration after 2
            raise ValueError('a fault of the code')

    class Failing(Hook):
        def before_train(self, runner):
            runner.optim_wrapper.optimizer.register_step_pre_hook(fail)

    runner.register_hook(Failing())
    with pytest.raises(ValueError, match=r'^a fault of the code') as caught:
        run_training(runner)
    assert not isinstance(caught.value, CheckpointError)


#: Parts of a checkpoint that mmengine takes over as they are, and that training fails of later.
SPOILT = {
    'optimizer.param_groups.0.params': [3],
    'optimizer.param_groups.0.lr': ['x', None],
    'optimizer.param_groups.0.betas': [[None, None]],
    'optimizer.state.0.exp_avg': [None, torch.ones(7)],
    'optimizer.state.0.step': ['x'],
    'param_schedulers.0.end': ['x'],
    'param_schedulers.0.param_name': ['rate'],
    'message_hub.log_scalars.train/lr': [None],
}
WARM_UP = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=9)]
ADAMW = dict(optimizer=dict(type='AdamW', lr=0.1), schedule=WARM_UP)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    return trained_toy(tmp_path_factory.mktemp('saved'), **ADAMW)


@pytest.mark.parametrize('place', SPOILT)
def test_a_senseless_value_is_named(place, saved, tmp_path):
    part, *path = [int(key) if key.isdigit() else key for key in place.split('.')]
    for value in SPOILT[place]:
        content = torch.load(saved, weights_only=False)
        node = content[part]
        for key in path[:-1]:
            node = node[key]
        assert path[-1] in node
        node[path[-1]] = value
        with pytest.raises(CheckpointError, match=rf'iter_9\.pth.*{part}.*load_from=FILE'):
            resume_toy(tmp_path / 'iter_9.pth', content, **ADAMW)


def test_a_state_that_an_optimiser_needs_is_missing(tmp_path):
    settings = dict(optimizer=dict(type='AdamW', amsgrad=True, lr=0.1))
    content = torch.load(trained_toy(tmp_path, **settings), weights_only=False)
    content['optimizer']['state'][0].pop('max_exp_avg_sq')
    with pytest.raises(CheckpointError, match=r"iter_9\.pth.*'optimizer'.*max_exp_avg_sq"):
        resume_toy(tmp_path / 'iter_9.pth', content, **settings)


def test_a_checkpoint_of_a_url_is_resumed(tmp_path, monkeypatch):
    """Though the folder has a file of its name, which is not taken for it."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    install_safe_loading()
    saved = trained_toy(tmp_path)
    monkeypatch.setattr('cyclemlp_mm.weights.files.fetch', lambda source: saved)
    url = f'http://example.org/{saved.name}'
    runner, lines = toy_runner(tmp_path, max_iters=3, resume=url), []
    runner.logger.info = lambda text, *rest: lines.append(str(text))
    runner.train()
    assert runner.iter == 3 and any(f'{url} is not of the folder' in line for line in lines)
