"""Signals, full disks, bad images and bad losses in the middle of a small training."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bad_images import BAD_IMAGES
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, STRATEGIES
from mmengine.runner import Runner
from paths import ROOT
from torch import nn
from torch.utils.data import Dataset
from toy_runs import TINY_BACKBONE, TINY_DETECTOR, TINY_SEGMENTOR, run_tool, train_toy

from cyclemlp_mm.apis.train import train as train_tool
from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.engine import make_robust
from cyclemlp_mm.engine.hooks.stop import EXIT_STOPPED, NonFiniteLossError, TrainingStopped
from cyclemlp_mm.engine.work_dir import LOCK, PARTIAL
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.weights import read_checkpoint

DEMO, SEGMENTOR = 'retinanet_cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small'
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'results.json')


@DATASETS.register_module()
class TwentyNumbers(Dataset):
    """x and a random number, which shows the random states."""

    metainfo = dict(classes=('a',))

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return dict(x=torch.tensor([float(index)]), noise=torch.rand(1))


@MODELS.register_module()
class Line(BaseModel):
    """Learns a line; keeps what it saw."""

    seen, nan_at = [], ()

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x, noise, mode='loss'):
        x, noise = torch.stack(list(x)), torch.stack(list(noise))
        if mode == 'predict':
            return [dict(line=line) for line in self.line(x)]
        Line.seen.append((x.flatten().tolist(), noise.flatten().tolist(), torch.rand(1).item()))
        loss = ((self.line(x) - noise) ** 2).mean()
        return dict(loss=loss * float('nan') if len(Line.seen) in Line.nan_at else loss)


@METRICS.register_module()
class Given(BaseMetric):
    """One value after the other; a number is that of 'score', and an error is raised."""

    values = []

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        value = Given.values.pop(0)
        if isinstance(value, Exception):
            raise value
        return value if isinstance(value, dict) else dict(score=value, results=len(results))


@HOOKS.register_module()
class At(Hook):
    """Calls a function of this file at an iteration: after it, or in a validation."""

    priority = 'HIGHEST'

    def __init__(self, iteration, call, during='train'):
        self.iteration, self.call, self.during = iteration, globals()[call], during

    def after_train_iter(self, runner, **kwargs):
        if (self.during, self.iteration) == ('train', runner.iter + 1):
            self.call()

    def before_val(self, runner):
        if (self.during, self.iteration) == ('before_val', runner.iter):
            self.call()

    def after_val_iter(self, runner, batch_idx, **kwargs):
        At.val_batches += 1
        if (self.during, self.iteration, batch_idx) == ('val', runner.iter, 1):
            self.call()


class Killed(BaseException):
    """The process is gone: nothing catches this."""


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def die():
    raise Killed


def at(iteration, call='terminate', during='train'):
    """Settings with a hook that calls a function."""
    return dict(custom_hooks=[dict(type='At', iteration=iteration, call=call, during=during)])


def config(tmp_path, by_epoch=True, workers=0, scores=None, changes=None, **more):
    """A training of 20 iterations, evaluated with these values after every epoch if there are."""
    loop = dict(by_epoch=True, max_epochs=4) if by_epoch else dict(by_epoch=False, max_iters=20)
    sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    loader = dict(dataset=dict(type='TwentyNumbers'), batch_size=4, num_workers=workers)
    checkpoint = dict(type='CheckpointHook', interval=1 if by_epoch else 3, max_keep_ckpts=1)
    cfg = Config(
        dict(
            model=dict(type='Line'),
            train_dataloader=dict(loader, sampler=sampler),
            train_cfg=loop,
            work_dir=str(tmp_path),
            log_level='WARNING',
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.01)),
            default_hooks=dict(checkpoint=dict(checkpoint, by_epoch=by_epoch)),
            randomness=dict(seed=1),
            default_scope='mmengine',
            experiment_name=f'{tmp_path.name}{time.monotonic_ns()}',
            **more,
        )
    )
    if scores is not None:
        Given.values = list(scores)
        validation = dict(type='DefaultSampler', shuffle=False)
        cfg.val_dataloader = dict(loader, sampler=validation, num_workers=0)
        cfg.val_cfg, cfg.val_evaluator = {}, dict(type='Given')
        cfg.default_hooks.checkpoint.update(save_best='score', rule='greater')
    cfg.merge_from_dict(changes or {})
    make_robust(cfg)
    return cfg


def train(cfg):
    """Train; returns the weights, and what the model saw."""
    Line.seen, At.val_batches = [], 0
    runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    finally:
        for hook in runner.hooks:
            getattr(hook, 'give_back', lambda: None)()
        # An iterator that was left in the middle waits 5 s for each of its workers.
        for worker in multiprocessing.active_children():
            worker.terminate()
    return {n: t.clone() for n, t in runner.model.state_dict().items()}, list(Line.seen)


def stop(cfg):
    """Train until a signal."""
    with pytest.raises(TrainingStopped) as stopped:
        train(cfg)
    assert stopped.value.code == EXIT_STOPPED == 75
    return stopped.value.message


def names_of(folder):
    return sorted(path.name for path in folder.rglob('*.pth'))


def info_of(path):
    return read_checkpoint(path)['message_hub']['runtime_info']


def edit(path, change):
    """Change the content of a checkpoint."""
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def same(weights, expected):
    return all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.few(6)
@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('last', [1, 7, 10])
def test_stopped_and_resumed_it_sees_the_same(tmp_path, by_epoch, workers, last):
    """To the bit, and whatever the number of workers: batches, augmentation, dropout, weights."""
    expected, all_seen = train(config(tmp_path / 'whole', by_epoch))
    assert len({number for _, noise, _ in all_seen for number in noise}) == 80  # of 4 epochs
    message = stop(config(tmp_path / 'parts', by_epoch, workers, **at(last)))
    assert f'stopped by SIGTERM after iteration {last}: saved' in message
    assert Line.seen == all_seen[:last]
    pointer = (tmp_path / 'parts' / 'last_checkpoint').read_text()
    assert read_checkpoint(pointer)['meta']['iter'] == last
    weights, seen = train(config(tmp_path / 'parts', by_epoch, workers, resume=True))
    assert seen == all_seen[last:] and same(weights, expected)
    # The interrupted one goes with the next regular one; one is kept.
    assert len(names_of(tmp_path / 'parts')) == 1


def every_ten(by_epoch, saves=10):
    """Validation every 10 iterations, checkpoints every so many, or every epoch."""
    changes = {'train_cfg.val_interval': 2 if by_epoch else 10}
    return {
        **changes,
        'default_hooks.checkpoint.interval': max(saves // 5, 1) if by_epoch else saves,
    }


@pytest.mark.parametrize('scores', [(0.1, 0.9), (0.9, 0.1)])
@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('last', [10, 20])
def test_a_validation_that_was_stopped_is_made_up_for(tmp_path, by_epoch, last, scores):
    """Also the last one, after which no iteration comes; the files are as without the stop."""
    settings = dict(scores=scores, changes=every_ten(by_epoch))
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    expected, _ = train(config(whole, by_epoch, **settings, **at(0)))
    stop(config(parts, by_epoch, **settings, **at(last, during='val')))
    assert At.val_batches == (7 if last == 20 else 2)
    settings['scores'] = Given.values
    weights, _ = train(config(parts, by_epoch, resume=True, **settings, **at(0)))
    assert At.val_batches == (5 if last == 20 else 10) and not Given.values
    assert names_of(parts) == names_of(whole) and same(weights, expected)
    info = info_of(parts / names_of(parts)[-1])
    assert info['best_score'] == info_of(whole / names_of(whole)[-1])['best_score'] == 0.9
    assert not info['due_validation'] and not info.get('interrupted_ckpt')


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('saves', [10, 20], ids=['saved', 'not-saved'])
def test_killed_between_the_last_save_and_its_validation(tmp_path, by_epoch, saves):
    """The resumed run has the evaluation and the best_* file of the unbroken one, and no more."""
    changes = every_ten(by_epoch, saves // 2 if by_epoch else saves)
    with pytest.raises(Killed):
        train(config(tmp_path, by_epoch, 0, (0.5, 0.9), changes, **at(20, 'die', 'before_val')))
    last = 'epoch_4.pth' if by_epoch else 'iter_20.pth'
    assert last in names_of(tmp_path) and f'best_score_{last}' not in names_of(tmp_path)
    for scores, left in (((0.9,), []), ((0.5,), [0.5])):  # the second time, nothing is to do
        train(config(tmp_path, by_epoch, 0, scores, changes, resume=True))
        assert Given.values == left and names_of(tmp_path) == [f'best_score_{last}', last]


def test_a_validation_that_improved_nothing_is_not_repeated(tmp_path):
    """Its figures, and what a schedule that follows them has learned, are in the checkpoint."""
    plateau = dict(type='ReduceOnPlateauLR', monitor='score', rule='greater', patience=0)
    settings = dict(param_scheduler=[plateau], changes={'default_hooks.checkpoint.save_best': None})

    def rates(name):
        content = read_checkpoint(tmp_path / name / 'epoch_4.pth')
        return [group['lr'] for group in content['optimizer']['param_groups']]

    train(config(tmp_path / 'whole', scores=(0.9, 0.5, 0.4, 0.3), **settings))
    killed = at(15, 'die', 'before_val')
    with pytest.raises(Killed):
        train(config(tmp_path / 'parts', scores=(0.9, 0.5, 0.4, 0.3), **settings, **killed))
    train(config(tmp_path / 'parts', scores=Given.values, resume=True, **settings))
    assert rates('parts') == rates('whole') and not Given.values
    assert info_of(tmp_path / 'parts' / 'epoch_4.pth')['due_validation'] is False


def test_the_pointer_follows_the_file_that_was_resumed(tmp_path):
    """Killed between the two, and with nothing left to save; what an interrupted save left goes."""
    others = [f'{PARTIAL}1-folder', f'{PARTIAL}notes']
    tmp_path.joinpath(others[0]).mkdir()
    for name in (others[1], f'{PARTIAL}0-epoch_1.pth'):
        tmp_path.joinpath(name).write_text('')
    train(config(tmp_path))
    assert sorted(p.name for p in tmp_path.glob(f'{PARTIAL}*')) == others
    pointer = tmp_path / 'last_checkpoint'
    pointer.write_text(str(tmp_path / 'epoch_3.pth'))
    train(config(tmp_path, resume=True, load_from=str(tmp_path / 'epoch_4.pth')))
    assert pointer.read_text() == str(tmp_path / 'epoch_4.pth')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The work dir of a training with one regular checkpoint and one best one."""
    folder = tmp_path_factory.mktemp('trained')
    train(config(folder, scores=(0.9, 0.5), changes={'train_cfg.max_epochs': 2}))
    return folder


def resumed(folder, file, better=True):
    """Two more epochs, the first of which is better than all before."""
    scores = (0.99 if better else 0.6, 0.5, 0.5)
    train(config(folder, scores=scores, resume=True, load_from=str(file)))


@pytest.mark.parametrize('how', ['file', 'copied folder', 'moved folder'])
def test_a_resumed_training_leaves_the_other_ones_files(trained, tmp_path, how):
    other, folder = tmp_path / 'a', tmp_path / 'b'
    shutil.copytree(trained, other)
    named = dict(best_ckpt=f'{other}/best_score_epoch_1.pth', last_ckpt=f'{other}/epoch_2.pth')
    edit(other / 'epoch_2.pth', lambda c: c['message_hub']['runtime_info'].update(named))
    before = names_of(other)
    assert before == ['best_score_epoch_1.pth', 'epoch_2.pth']
    if how != 'file':
        shutil.copytree(other, folder)
    if how == 'moved folder':
        shutil.rmtree(other)
    resumed(folder, (other if how == 'file' else folder) / 'epoch_2.pth')
    assert how == 'moved folder' or names_of(other) == before
    assert names_of(folder) == ['best_score_epoch_3.pth', 'epoch_4.pth']


def test_the_best_one_stays_where_the_folder_was_copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'b')
    resumed(tmp_path / 'b', tmp_path / 'b' / 'epoch_2.pth', better=False)
    assert names_of(tmp_path / 'b') == ['best_score_epoch_1.pth', 'epoch_4.pth']
    info = info_of(tmp_path / 'b' / 'epoch_4.pth')
    assert info['best_ckpt'] == str(tmp_path / 'b' / 'best_score_epoch_1.pth')


@pytest.mark.parametrize(
    'key, value',
    [
        ('interrupted_ckpt', '{victim}'),
        ('interrupted_ckpt', '{wd}/epoch_7.pth'),
        ('interrupted_ckpt', '{wd}/epoch_8.pth'),
        ('interrupted_ckpt', '{wd}/notes.pth'),
        ('interrupted_ckpt', '{wd}/../victim/epoch_5.pth'),
        ('interrupted_ckpt', f'epoch_{"1" * 5000}.pth'),
        ('best_ckpt', '{wd}/sub/best_score_epoch_1.pth'),
        ('best_ckpt', 7),
        ('keep_ckpt_ids', ['../../victim/x', 8, 7, 1, 2]),
        ('keep_ckpt_ids', '{victim}'),
        ('best_score', 'high'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_crafted_checkpoint_names_is_not_removed(trained, tmp_path, key, value):
    """Folders, links and other files, here and elsewhere; epoch_7.pth is a link, 8 a folder."""
    folder, victim = tmp_path / 'wd', tmp_path / 'victim'
    shutil.copytree(trained, folder)
    others = (victim, folder / 'sub', folder / 'epoch_8.pth')
    for part in others:
        part.mkdir()
        for name in ('x.pth', 'epoch_5.pth', 'best_score_epoch_1.pth'):
            (part / name).write_text('precious')
    (folder / 'epoch_7.pth').symlink_to(victim / 'x.pth')
    (folder / 'notes.pth').write_text('mine')
    if isinstance(value, str):
        value = value.format(victim=victim, wd=folder)
    edit(folder / 'epoch_2.pth', lambda c: c['message_hub']['runtime_info'].update({key: value}))
    resumed(folder, folder / 'epoch_2.pth')
    assert all(len(names_of(other)) == 3 for other in others)
    assert (folder / 'epoch_7.pth').is_symlink() and (folder / 'notes.pth').is_file()
    assert (folder / 'epoch_4.pth').is_file() and (folder / 'best_score_epoch_3.pth').is_file()


def test_a_template_with_a_number_format(tmp_path):
    """Stopped in mid-epoch, resumed, and both kinds of files removed in time."""
    changes = {'default_hooks.checkpoint.filename_tmpl': 'run{:03d}.pth'}
    stop(config(tmp_path, changes=changes, **at(7)))
    assert names_of(tmp_path) == ['run001.pth', 'run001_iter_7.pth']
    train(config(tmp_path, changes=changes, resume=True))
    assert names_of(tmp_path) == ['run004.pth']


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('batch_size', [4, 2])
def test_other_data_than_before_are_reported(tmp_path, by_epoch, batch_size, capsys):
    stop(config(tmp_path, by_epoch, **at(7)))
    changes = {'train_dataloader.batch_size': batch_size}
    train(config(tmp_path, by_epoch, changes=changes, resume=True))
    message = 'had 5 batches in an epoch, and now there are 10'
    assert (message in capsys.readouterr().out) == (batch_size == 2)


SCHEDULE = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6),
    dict(type='MultiStepLR', by_epoch=True, milestones=[2, 3]),
]


@pytest.mark.parametrize(
    'changes, said',
    [
        ({}, None),
        ({'optim_wrapper.optimizer.lr': 0.002}, r'lr 0\.01 \(config: 0\.002\).*load_from=FILE'),
        ({'optim_wrapper.optimizer.betas': (0.8, 0.9)}, r'betas \[0\.9, 0\.999\] \(config: \[0\.8'),
        ({'param_scheduler.1.milestones': [3, 4]}, r'milestones \[2, 3\] \(config: \[3, 4\]\)'),
        ({'param_scheduler.1.milestones': [2, 2, 3]}, r'config: \[2, 2, 3\]'),
        ({'param_scheduler.0.end': 3}, r'param_schedulers\.0\.end 6 \(config: 3\)'),
        ({'param_scheduler': SCHEDULE[:1]}, r'2 param_schedulers \(config: 1\)'),
        ({'param_scheduler': None}, None),
    ],
    ids=str,
)
def test_settings_that_a_resumed_training_does_not_follow(tmp_path, changes, said, capsys):
    stop(config(tmp_path, param_scheduler=SCHEDULE, **at(8)))
    capsys.readouterr()
    train(config(tmp_path, resume=True, param_scheduler=SCHEDULE, changes=changes))
    logged = [line for line in capsys.readouterr().out.splitlines() if 'not with those of' in line]
    assert len(logged) == bool(said)
    assert not said or re.search(said, logged[0])


@pytest.mark.parametrize(
    'optimizer, paramwise, said',
    [
        ('SGD', {}, "than SGD .* lacks 'momentum'"),
        ('RMSprop', {}, 'than RMSprop .* lacks'),
        ('AdamW', {'bias': dict(lr_mult=2)}, 'has 1 groups of 2 parameters, but AdamW .* 2 groups'),
        ('Adam', {}, None),
    ],
)
def test_another_optimiser_cannot_be_resumed(tmp_path, optimizer, paramwise, said):
    """That of an older version of torch, which lacks settings that torch adds itself, can be."""
    stop(config(tmp_path, **at(7)))
    for key in ('foreach', 'maximize', 'capturable', 'differentiable', 'fused'):
        file = tmp_path / 'epoch_1_iter_7.pth'
        edit(file, lambda c, key=key: c['optimizer']['param_groups'][0].pop(key, None))
    cfg = config(tmp_path, resume=True)
    cfg.optim_wrapper = dict(optimizer=dict(type=optimizer, lr=0.01))
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=paramwise) if paramwise else None
    if said is None:
        train(cfg)
        return
    with pytest.raises(CheckpointError, match=rf'epoch_1_iter_7\.pth: .*{said}.*load_from=FILE'):
        train(cfg)


def test_an_accumulated_gradient_is_completed_first(tmp_path):
    stop(config(tmp_path, changes={'optim_wrapper.accumulative_counts': 4}, **at(5)))
    assert len(Line.seen) == 8


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(config(tmp_path))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def fill_disk(monkeypatch, is_full):
    """Have files not written for which ``is_full`` of the path is true."""
    real = os.fsync

    def fsync(descriptor):
        if is_full(os.readlink(f'/proc/self/fd/{descriptor}')):
            raise OSError(28, 'No space left on device')
        return real(descriptor)

    monkeypatch.setattr(os, 'fsync', fsync)


@pytest.mark.parametrize('last', [False, True])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, last):
    """Reported; training goes on and saves again when there is space, or ends with an error."""
    attempts, failing = [], (4,) if last else (2, 3)

    def is_full(path):
        attempts.extend([1] * path.endswith('.pth'))
        return path.endswith('.pth') and len(attempts) in failing

    fill_disk(monkeypatch, is_full)
    if last:
        with pytest.raises(UserError, match=r'epoch_4.*No space.*epoch_3'):
            train(config(tmp_path))
    else:
        train(config(tmp_path))
    kept = f'epoch_{3 if last else 4}.pth'
    assert [p.name for p in tmp_path.glob('*.pth')] == [kept]
    assert not list(tmp_path.glob(f'{PARTIAL}*'))
    assert (tmp_path / 'last_checkpoint').read_text().endswith(kept)
    read_checkpoint(tmp_path / kept)


@pytest.mark.parametrize('metrics', [['score'], ['score', 'other']])
def test_a_full_disk_leaves_the_best_checkpoint(tmp_path, monkeypatch, metrics, capsys):
    """And what the run knows of it: the file that was not written is not its best one."""
    fill_disk(monkeypatch, lambda path: f'best_{metrics[-1]}_epoch_2' in path)
    scores = [dict.fromkeys(metrics, value) for value in (0.1, 0.3, 0.05, 0.2)]
    cfg = config(tmp_path, scores=scores, changes={'default_hooks.checkpoint.save_best': metrics})
    cfg.log_level = 'INFO'
    train(cfg)
    # 0.2 of epoch 4 is better than what was kept of the last metric, 0.1.
    files = [f'best_{m}_epoch_{2 if m != metrics[-1] else 4}.pth' for m in metrics]
    assert sorted(p.name for p in tmp_path.glob('best_*')) == sorted(files)
    content = info_of(tmp_path / 'epoch_4.pth')
    for metric, file in zip(metrics, files):
        end = '' if len(metrics) == 1 else f'_{metric}'
        assert content[f'best_ckpt{end}'].endswith(file)
        assert content[f'best_score{end}'] == (0.2 if metric == metrics[-1] else 0.3)
    logged = capsys.readouterr().out
    assert re.search(rf'checkpoint \S*best_{metrics[-1]}_epoch_2\.pth could not be writ', logged)
    removed = re.findall(r'previous best checkpoint \S*/(\S+) is removed', logged)
    assert removed == [f'best_{metric}_epoch_1.pth' for metric in metrics]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'none', str(folder)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip('no right to mount a file system here')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


@HOOKS.register_module()
class FillDisk(Hook):
    """Fills a disk from one iteration to another."""

    priority = 'HIGHEST'

    def __init__(self, file, iterations):
        self.file, self.iterations = Path(file), iterations

    def before_train_iter(self, runner, **kwargs):
        if runner.iter == self.iterations[0]:
            with pytest.raises(OSError, match='No space'), self.file.open('wb', 0) as file:
                while True:
                    file.write(bytes(4096))
        elif runner.iter == self.iterations[1]:
            self.file.unlink()


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('tensorboard', [False, True], ids=['json', 'tensorboard'])
def test_every_write_of_a_run_survives_a_full_disk(small_disk, by_epoch, tensorboard, capsys):
    """Lines, figures, checkpoints, best ones and the pointer; what fits later is there."""
    if tensorboard:
        pytest.importorskip('tensorboard')
    backend = 'TensorboardVisBackend' if tensorboard else 'LocalVisBackend'
    cfg = config(
        small_disk / 'wd',
        by_epoch,
        scores=(0.1, 0.2, 0.3, 0.4),
        changes={'train_cfg.val_interval': 1 if by_epoch else 5},
        custom_hooks=[dict(type='FillDisk', file=f'{small_disk}/filler', iterations=[6, 13])],
        visualizer=dict(type='Visualizer', name=str(small_disk), vis_backends=[dict(type=backend)]),
    )
    cfg.log_level = 'INFO'
    cfg.default_hooks.logger.interval = 1
    train(cfg)
    last = 'epoch_4' if by_epoch else 'iter_20'
    assert names_of(small_disk) == [f'best_score_{last}.pth', f'{last}.pth']
    assert (small_disk / 'wd' / 'last_checkpoint').read_text().endswith(f'{last}.pth')
    read_checkpoint(small_disk / 'wd' / f'{last}.pth')
    printed = ''.join(capsys.readouterr())
    assert tensorboard or 'Traceback' not in printed  # its writer is a thread that ends
    assert 'Logging error' not in printed
    assert re.search('could not be written: .*No space left on device.*Training goes on', printed)
    assert re.search(r'[1-9]\d* entries of the log or its figures in .* are missing', printed)
    assert printed.count('Training goes on; make room') == 1


def test_an_evaluation_without_room_for_its_results(tmp_path, capsys):
    """It has no figures; the next one counts its own results only, with averaged weights."""
    train(config(tmp_path, scores=(1, FULL, 3, 4), custom_hooks=[dict(type='EMAHook')]))
    assert names_of(tmp_path) == ['best_score_epoch_4.pth', 'epoch_4.pth']
    assert re.search('this validation has no figures: .*No space left', capsys.readouterr().out)
    scalars = read_checkpoint(tmp_path / 'epoch_4.pth')['message_hub']['log_scalars']
    assert list(scalars['val/results'].data[0]) == [5, 5, 5]


def test_an_evaluation_without_room_in_several_processes(tmp_path, monkeypatch):
    """An error: the others would wait for this one."""
    monkeypatch.setattr('cyclemlp_mm.engine.runner.loops.get_world_size', lambda: 2)
    with pytest.raises(OSError, match='No space left'):
        train(config(tmp_path, scores=(FULL,)))


@pytest.mark.parametrize('batches', ['7', -1, 2.5], ids=str)
def test_a_damaged_count_of_batches(trained, tmp_path, batches):
    file = Path(shutil.copy(trained / 'epoch_2.pth', tmp_path))
    edit(file, lambda c: c['message_hub']['runtime_info'].update(batches_done=batches))
    with pytest.raises(CheckpointError, match='batches of the epoch done: it is damaged'):
        resumed(tmp_path, file)


@pytest.fixture
def nans():
    """Sets the iterations whose loss is nan, and builds a runner."""

    def build(cfg, at):
        Line.seen, Line.nan_at = [], at
        return Runner.from_cfg(cfg)

    yield build
    Line.nan_at = ()


def test_a_passing_nan_leaves_the_weights_alone(tmp_path, nans):
    """As if its iteration had not been, for the optimiser too."""
    runner = nans(config(tmp_path), (3, 4))
    runner.train()
    assert len(Line.seen) == 20
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    steps = {int(state['step']) for state in runner.optim_wrapper.optimizer.state.values()}
    assert steps == {18}


@pytest.mark.parametrize(
    'first, keep, good',
    [
        (7, 1, r'\S*epoch_1\.pth\.'),
        # Saved between nans: the weights may be damaged before the loss shows it.
        (10, -1, r'\S*epoch_1\.pth \(\S*epoch_2\.pth was saved after the last finite loss'),
        (10, 1, r'none \(\S*epoch_2\.pth was saved after the last finite loss'),
    ],
)
def test_many_nans_in_a_row_stop(tmp_path, first, keep, good, nans):
    cfg = config(tmp_path, max_non_finite=3)
    cfg.default_hooks.checkpoint.max_keep_ckpts = keep
    message = rf'iteration {first + 2}: loss .*3 in a row.*Last good checkpoint: {good}'
    with pytest.raises(NonFiniteLossError, match=message):
        nans(cfg, range(first, 99)).train()


def spoil(folder, names):
    """Overwrite the first images of a folder with broken or unusual ones, suffix and all."""
    for path, name in zip(sorted(folder.iterdir()), names):
        path.write_bytes(BAD_IMAGES[name][0]())


@pytest.mark.few(1)
@pytest.mark.parametrize(
    'bad, options, said',
    [
        (
            [],
            ['model.bbox_head.loss_cls.loss_weight=nan', 'max_non_finite=2'],
            r'iteration 2: .*2 in a row.*0000\d\.jpg.*Last good checkpoint: none yet',
        ),
        (
            ['truncated.jpg', 'zeros.jpg', 'empty.jpg'],
            [],
            r'\d of 8 images of the train data .*max_bad_fraction=0.05.*0000[123]\.jpg',
        ),
    ],
    ids=['nan', 'bad images'],
)
def test_a_detector_stops_and_names_the_images(tmp_path, bad, options, said):
    data = write_coco(tmp_path / 'shapes', 8, 2, (64, 48))
    spoil(data / 'train2017', bad)
    argv = [DEMO, '--data', data, '--work-dir', 'wd', '--skip-check']
    argv += ['--cfg-options', *TINY_DETECTOR, *TINY_BACKBONE, *options]
    code, printed = run_tool('train.py', *argv, cwd=tmp_path, check=False)
    assert code == 2 and re.search(rf'error: {said}', printed), printed[-3000:]


@pytest.mark.few(1)
@pytest.mark.parametrize('workers', [0, 1])
def test_a_detector_trains_through_bad_images(tmp_path, workers):
    """Those that cannot be used are named, and the others take their place."""
    data = write_coco(tmp_path / 'shapes', 36, 4, (64, 48))
    spoil(data / 'train2017', BAD_IMAGES)
    spoil(data / 'val2017', ['truncated.jpg', 'cmyk.jpg'])
    options = [o for o in TINY_DETECTOR if 'train_dataloader' not in o]
    loader = [f'num_workers={workers}', f'persistent_workers={workers > 0}', 'batch_size=4']
    options += [*TINY_BACKBONE, *(f'train_dataloader.{setting}' for setting in loader)]
    options.append('max_bad_fraction=0.5')
    printed = train_toy(DEMO, data, '--skip-check', options=options, cwd=tmp_path)
    assert re.search(r'Epoch\(train\)\s+\[1\]\[9/9\]', printed)
    skipped = sum(what == 'skipped' for _, what, _ in BAD_IMAGES.values())
    summary = re.search(r'images of the train data so far: (.*)', printed)[1]
    assert sum(map(int, re.findall(r'(\d+) skipped', summary))) == skipped
    assert re.search(r'image skipped: .*0001\.jpg: is truncated', printed)
    assert re.search(r'images of the val data so far: 1 converted \(.*; 1 skipped', printed)
    assert (tmp_path / 'wd' / 'epoch_1.pth').is_file()


@pytest.mark.slow
def test_a_segmentor_trains_through_bad_images_and_labels(tmp_path):
    data = write_ade20k(tmp_path / 'shapes', 12, 2, (64, 48))
    spoil(data / 'images' / 'training', ['truncated.jpg', 'cmyk.jpg', 'zeros.jpg'])
    for split, index in (('training', 4), ('validation', 0)):
        label = sorted((data / 'annotations' / split).iterdir())[index]
        label.write_bytes(label.read_bytes()[:-40])
    length = ['train_cfg.max_iters=8', 'train_cfg.val_interval=8', 'max_bad_fraction=0.5']
    options = [*TINY_SEGMENTOR, *length]
    printed = train_toy(SEGMENTOR, data, '--skip-check', options=options, cwd=tmp_path)
    for part in (
        r'Iter\(train\) \[8/8\]',
        '00001.jpg: is truncated',
        'converted: .*00002.jpg: CMYK',
        '00003.jpg: cannot be read as an image',
        r'00005\.jpg: .*00005\.png is truncated',
        r'Iter\(val\) \[2/2\].*mIoU',
        r'ADE_val_00000001\.jpg: .*ADE_val_00000001\.png is truncated',
    ):
        assert re.search(part, printed), part


@pytest.mark.few(1)
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_whole_job(tmp_path, number):
    """As a cluster or a terminal sends them: to the worker processes too."""
    write_coco(tmp_path / 'shapes', 16, 2, (64, 64))
    options = [o for o in TINY_DETECTOR if not o.startswith('train_dataloader.')]
    options += [*TINY_BACKBONE, 'train_cfg.max_epochs=90', 'train_dataloader.num_workers=2']
    argv = [DEMO, '--data', 'shapes', '--work-dir', 'wd', '--cfg-options', *options]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / 'train.py'), *argv],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    for line in process.stdout:
        if 'Epoch(train)   [1][2/2]' in line or 'Epoch(train)  [2]' in line:
            os.killpg(process.pid, number)
            break
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_STOPPED, printed[-3000:]
    name = signal.Signals(number).name
    path = re.search(rf'stopped by {name} after iteration \d+: saved (\S+);', printed)[1]
    read_checkpoint(tmp_path / path)
    assert 'Traceback' not in printed


@pytest.mark.parametrize('moment', ['check', 'build', 'init_weights'])
def test_sigterm_before_the_first_iteration(tmp_path, monkeypatch, moment, capsys):
    """The same exit code wherever it comes; a job that is put back starts again."""
    tool = sys.modules['cyclemlp_mm.apis.train']

    def stop(*args):
        terminate()
        time.sleep(5)

    cfg = config(tmp_path, launcher='none')
    monkeypatch.setattr(tool, '_prepare_training', lambda args: (cfg, None, []))
    places = dict(check=(tool, '_prepare_training'), build=(Runner, 'from_cfg'))
    monkeypatch.setattr(*places.get(moment, (Line, 'init_weights')), stop)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped) as stopped:
        train_tool([DEMO])
    assert stopped.value.code == 75 and 'nothing to save' in stopped.value.message
    assert 'stopped by SIGTERM while no iteration ran' in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / LOCK).exists()


def test_sigterm_during_the_imports():
    with subprocess.Popen([sys.executable, str(ROOT / 'tools' / 'train.py'), DEMO]) as process:
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75


def test_a_strategys_checkpoints_are_complete_or_absent(tmp_path, monkeypatch):
    """FlexibleRunner's strategies write a file by its name; a disk may fill in the middle."""
    from mmengine._strategy import SingleDeviceStrategy

    def save_checkpoint(self, filename, **kwargs):
        Path(filename).write_bytes(b'half')
        raise FULL

    monkeypatch.setattr(SingleDeviceStrategy, 'save_checkpoint', save_checkpoint)
    cfg = Config(dict(runner_type='FlexibleRunner'))
    make_robust(cfg)
    strategy = object.__new__(STRATEGIES.get(cfg.strategy.type))
    with pytest.raises(OSError, match='No space'):
        strategy.save_checkpoint(filename=str(tmp_path / 'epoch_1.pth'))
    assert not list(tmp_path.iterdir())
