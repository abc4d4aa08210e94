"""Progress bar, summary and --vis, on a toy run of mmengine's Runner."""

import io
import logging
import re
import shlex
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from rich.console import Console

from cyclemlp_mm.engine.hooks import ProgressBar, progress_bar
from cyclemlp_mm.engine.summary import run_summary
from cyclemlp_mm.engine.training_config import add_vis_backends
from cyclemlp_mm.errors import UserError


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='tensor'):
        loss = (self.weight * inputs).sum()
        return dict(loss=loss) if mode == 'loss' else [loss]


class Falling(BaseMetric):
    """0.5, then worse."""

    values = iter(())

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        value = next(self.values)
        return {} if value is None else dict(score=value)


@pytest.fixture
def make_runner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Falling.values = iter((0.5, 0.25))
    names = iter(range(9))

    def make(hook='CheckpointHook', save_best='score', **more):
        data = [dict(inputs=torch.ones(1)) for _ in range(4)]
        cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=[]), **more))
        cfg.work_dir = 'work_dirs/run'
        names_used = f'toy_{tmp_path.name}_{next(names)}'
        cfg.visualizer.name = names_used
        return Runner(
            model=Toy(),
            work_dir=cfg.work_dir,
            experiment_name=names_used,
            train_dataloader=torch.utils.data.DataLoader(data),
            val_dataloader=torch.utils.data.DataLoader(data[:2]),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            val_cfg={},
            val_evaluator=Evaluator(Falling()),
            visualizer=cfg.visualizer,
            cfg=cfg,
            default_hooks=dict(checkpoint=dict(type=hook, save_best=save_best, rule='greater')),
        )

    return make


def test_summary_names_the_best_and_commands_that_work(make_runner):
    runner = make_runner(default_scope='mmdet')
    runner.train()
    lines = run_summary(runner).splitlines()
    best = 'work_dirs/run/best_score_epoch_1.pth'
    assert lines[0] == f'best score: 0.5, in {best}'
    assert lines[1] == 'last checkpoint: work_dirs/run/epoch_2.pth'
    command = shlex.split(lines[2].removeprefix('test it:'))
    assert command[0] == 'python' and command[1].endswith('tools/test.py')
    assert command[3] == best
    assert lines[3].startswith('use it:') and lines[3].endswith(f'{best} IMAGES')
    assert len(lines) == 4


def test_summary_before_anything_was_saved(make_runner):
    text = run_summary(make_runner())
    assert text.startswith('no metric: no evaluation ran\n')
    assert text.endswith('no checkpoint was saved')


@pytest.mark.parametrize(
    'value, save_best, said',
    [
        (None, 'score', 'no metric: the evaluation ran, and the model found nothing'),
        (0.5, None, 'no best metric: the evaluation ran, but .*save_best is not set'),
        (float('nan'), 'score', 'no best metric: .*or what it names was never a number'),
    ],
)
def test_an_evaluation_without_a_best_is_no_missing_one(make_runner, value, save_best, said):
    Falling.values = iter((value, value))
    runner = make_runner('AtomicCheckpointHook', save_best)
    runner.train()
    assert re.match(said, run_summary(runner))


def test_the_bar_on_a_terminal(make_runner):
    runner = make_runner()
    screen = io.StringIO()
    bar = ProgressBar(Console(file=screen, force_terminal=True, width=120))
    runner.register_hook(bar)
    streams = [h.stream for h in runner.logger.handlers if type(h) is logging.StreamHandler]
    runner.train()
    drawn = screen.getvalue()
    # The log goes above the bar.
    for text in ('train, epoch 2/2', '8/8', 'left', 'loss', 'evaluate', '2/2', 'Saving checkpoint'):
        assert text in drawn
    assert bar.bar.finished and not bar.bar.live.is_started
    assert [h.stream for h in runner.logger.handlers if type(h) is logging.StreamHandler] == streams
    assert sys.stdout is not screen


def test_no_bar_where_the_output_is_no_terminal(make_runner):
    runner = make_runner()
    screen = io.StringIO()
    runner.register_hook(ProgressBar(Console(file=screen)))
    runner.train()
    assert screen.getvalue() == ''


def test_the_bar_goes_when_a_run_breaks_off(make_runner, monkeypatch):
    runner = make_runner()
    monkeypatch.setattr(Console, 'is_terminal', True)
    monkeypatch.setattr(Toy, 'forward', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError), progress_bar(runner):
        runner.train()
    [bar] = [hook for hook in runner.hooks if isinstance(hook, ProgressBar)]
    assert not bar.bar.live.is_started and bar._streams == []
    assert 'Progress' not in runner.cfg.pretty_text  # it is not in the saved config


def test_vis_adds_a_backend_once(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', object())
    cfg = Config(
        dict(
            work_dir='work_dirs/run',
            visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        )
    )
    for _ in range(2):
        add_vis_backends(cfg, ['wandb'])
    local, wandb = cfg.visualizer.vis_backends
    assert local.type == 'LocalVisBackend'
    assert wandb.type == 'WandbVisBackend'
    assert wandb.init_kwargs == dict(project='cyclemlp_mm', name='run')


def test_vis_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    cfg = Config(dict(work_dir='w', visualizer=dict(type='Visualizer')))
    with pytest.raises(UserError, match=r"needs the package tensorboard .*cyclemlp_mm\[vis\]'"):
        add_vis_backends(cfg, ['tensorboard'])
    with pytest.raises(UserError, match='needs a visualizer'):
        add_vis_backends(Config(dict(work_dir='w')), ['tensorboard'])


def test_tensorboard_holds_loss_and_metric(make_runner, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = Config(dict(work_dir='w', visualizer=dict(type='Visualizer', vis_backends=[])))
    add_vis_backends(cfg, ['tensorboard'])
    runner = make_runner(default_scope='mmengine')
    visualizer = dict(cfg.visualizer, name=f'tb_{tmp_path.name}', save_dir=runner.log_dir)
    runner.visualizer = runner.build_visualizer(visualizer)
    runner.cfg.visualizer = cfg.visualizer
    runner._hooks = [h for h in runner.hooks if type(h).__name__ != 'LoggerHook']
    runner.register_hook(dict(type='LoggerHook', interval=1))
    runner.train()
    [file] = tmp_path.rglob('*tfevents*')
    events = EventAccumulator(str(file)).Reload()
    assert [e.value for e in events.Scalars('score')] == [0.5, 0.25]
    assert len(events.Scalars('loss')) == 8
    assert 'curves:    tensorboard --logdir work_dirs/run' in run_summary(runner)
