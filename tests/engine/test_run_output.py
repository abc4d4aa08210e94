"""Progress bar, summary and --vis, on a toy run of mmengine's Runner."""

import io
import itertools
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

from cyclemlp_mm.engine.hooks.logger import ProgressBar, progress_bar
from cyclemlp_mm.engine.summary import LogSummary, run_summary
from cyclemlp_mm.engine.training_config import add_vis_backends
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.models import CycleMLP

NAMES = itertools.count()  # mmengine keeps visualizers by their names


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='tensor'):
        loss = (self.weight * inputs).sum()
        return dict(loss=loss) if mode == 'loss' else [loss]


class Given(BaseMetric):
    """One value after the other; None is an evaluation without figures."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        value = next(self.values)
        return {} if value is None else dict(score=value)


@pytest.fixture
def make_runner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(*values, save_best='score', backends=(), **more):
        Given.values = iter(values or (0.5, 0.25))
        data = [dict(inputs=torch.ones(1)) for _ in range(4)]
        name = f'toy_{tmp_path.name}_{next(NAMES)}'
        visualizer = dict(type='Visualizer', name=name, vis_backends=list(backends))
        checkpoint = dict(type='AtomicCheckpointHook', save_best=save_best, rule='greater')
        return Runner(
            model=Toy(),
            work_dir='work_dirs/run',
            experiment_name=name,
            train_dataloader=torch.utils.data.DataLoader(data),
            val_dataloader=torch.utils.data.DataLoader(data[:2]),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            val_cfg={},
            val_evaluator=Evaluator(Given()),
            visualizer=visualizer,
            cfg=Config(dict(visualizer=visualizer, work_dir='work_dirs/run', **more)),
            default_hooks=dict(checkpoint=checkpoint, logger=dict(type='LoggerHook', interval=1)),
        )

    return make


def streams(runner):
    return [h.stream for h in runner.logger.handlers if type(h) is logging.StreamHandler]


def test_summary_names_the_best_and_commands_that_work(make_runner):
    runner = make_runner(default_scope='mmdet')
    assert re.fullmatch('no best metric: .*\nno checkpoint was saved', run_summary(runner))
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


@pytest.mark.parametrize(
    'value, save_best', [(None, 'score'), (0.5, None), (float('nan'), 'score')]
)
def test_a_training_without_a_best_one(make_runner, value, save_best):
    runner = make_runner(value, value, save_best=save_best)
    runner.train()
    lines = run_summary(runner).splitlines()
    assert lines[0].startswith('no best metric: no evaluation ran, it gave no number')
    assert lines[1] == 'last checkpoint: work_dirs/run/epoch_2.pth'


@pytest.mark.parametrize('terminal', [True, False])
def test_the_bar_is_shown_on_a_terminal(make_runner, terminal):
    runner = make_runner()
    screen = io.StringIO()
    bar = ProgressBar(Console(file=screen, force_terminal=terminal, width=120))
    runner.register_hook(bar)
    before = streams(runner)
    runner.train()
    shown = ['train, epoch 2/2', '8/8', 'left', 'loss', 'evaluate', '2/2', 'Saving checkpoint']
    assert [text in screen.getvalue() for text in shown] == [terminal] * len(shown)
    assert bar.bar.finished and not bar.bar.live.is_started
    assert streams(runner) == before and sys.stdout is not screen


def test_the_bar_goes_when_a_run_breaks_off(make_runner, monkeypatch):
    runner = make_runner()
    before = streams(runner)
    monkeypatch.setattr(Console, 'is_terminal', True)
    monkeypatch.setattr(Toy, 'forward', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError), progress_bar(runner):
        runner.train()
    [bar] = [hook for hook in runner.hooks if isinstance(hook, ProgressBar)]
    assert not bar.bar.live.is_started and streams(runner) == before
    assert 'Progress' not in runner.cfg.pretty_text  # it is not in the saved config


def test_vis_adds_a_backend_once_or_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', object())
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    cfg = Config(dict(work_dir='work_dirs/run', visualizer=dict(type='Visualizer')))
    for _ in range(2):
        add_vis_backends(cfg, ['wandb'])
    local, wandb = cfg.visualizer.vis_backends
    assert (local.type, wandb.type) == ('LocalVisBackend', 'WandbVisBackend')
    assert wandb.init_kwargs == dict(project='cyclemlp_mm', name='run')
    with pytest.raises(UserError, match=r"needs the package tensorboard .*cyclemlp_mm\[vis\]'"):
        add_vis_backends(cfg, ['tensorboard'])
    with pytest.raises(UserError, match='needs a visualizer'):
        add_vis_backends(Config(dict(work_dir='w')), ['wandb'])


def test_tensorboard_holds_loss_and_metric(make_runner, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = Config(dict(work_dir='w', visualizer=dict(type='Visualizer', vis_backends=[])))
    add_vis_backends(cfg, ['tensorboard'])
    runner = make_runner(backends=cfg.vis_backends)
    runner.train()
    [file] = tmp_path.rglob('*tfevents*')
    events = EventAccumulator(str(file)).Reload()
    assert [e.value for e in events.Scalars('score')] == [0.5, 0.25]
    assert len(events.Scalars('loss')) == 8


@pytest.mark.parametrize('source', ['nothing', 'a backbone file', 'load_from', 'a resumed run'])
def test_only_random_weights_are_called_random(source, make_runner, tmp_path, caplog):
    four = dict(depths=(1,) * 4, widths=(8,) * 4, mlp_ratios=(1,) * 4)
    arch = dict(four, reweight=True, downsample='conv')
    backbone, file = CycleMLP(arch, out_indices=0), str(tmp_path / 'backbone.pth')
    torch.save(backbone.state_dict(), file)
    if source == 'a backbone file':
        init_cfg = dict(type='Pretrained', checkpoint=file)
        backbone = CycleMLP(arch, out_indices=0, init_cfg=init_cfg)
    if source == 'a resumed run':
        make_runner(save_best=None).train()
    runner = make_runner(**{'load_from': file} if source == 'load_from' else {})
    if source == 'a resumed run':
        runner.resume((tmp_path / 'work_dirs/run/last_checkpoint').read_text().strip())
    else:
        runner.model.backbone = backbone
    runner.register_hook(LogSummary(), 'VERY_LOW')
    runner.logger.addHandler(caplog.handler)
    runner.train()
    assert ('weights   random' in caplog.text) == (source == 'nothing')
    assert 'schedule ' in caplog.text
