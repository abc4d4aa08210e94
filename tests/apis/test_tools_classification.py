"""tools/train.py and tools/test.py on a classifier, as a user runs them."""

import os
import re
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from toy_runs import NO_WORKERS, run_tool, train_toy

from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets.shapes import write_image_folders, write_image_lists
from cyclemlp_mm.errors import UserError

pytest.importorskip('mmpretrain')

DEMO, DISTILL = 'cyclemlp_demo', 'cyclemlp_demo_distill'
FAST = [*NO_WORKERS, 'randomness.seed=0']
FEW = [
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'train_dataloader.batch_size=8',
    'default_hooks.logger.interval=1',
    'model.backbone.arch.widths=(8,8,8,128)',
]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_image_folders(tmp_path_factory.mktemp('data') / 'folders', 24, 8, (64, 64))


@pytest.fixture(scope='module')
def teacher(data, tmp_path_factory):
    """Options for a teacher: the demo's classifier after three iterations."""
    folder = tmp_path_factory.mktemp('teacher')
    printed = train_toy(DEMO, data, options=[*FAST, *FEW], cwd=folder)
    assert re.search(r'Epoch\(train\)\s+\[1\]\[3/3\].* loss: \d', printed)
    assert re.search(r'Epoch\(val\) \[1\].*accuracy/top1: \d', printed)
    checkpoint = folder / 'wd' / 'epoch_1.pth'
    widths = 'model.teacher.backbone.arch.widths=(8,8,8,128)'
    return [*FAST, f'model.teacher_checkpoint={checkpoint}', widths]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_learns_within_seconds(tmp_path):
    data = write_image_lists(tmp_path / 'shapes', 400, 100, (48, 48))
    epochs = ('train_cfg.max_epochs', 'train_cfg.val_interval', 'param_scheduler.1.end')
    epochs = [f'{key}=6' for key in (*epochs, 'param_scheduler.1.T_max')]
    printed = train_toy(DEMO, data, options=[*FAST, *epochs], cwd=tmp_path)
    accuracy = float(re.findall(r'accuracy/top1: ([\d.]+)', printed)[-1])
    assert accuracy >= 50  # chance is 25


@pytest.mark.parametrize(
    'kind, amp',
    [
        ('soft', ['--amp']),
        pytest.param('soft', [], marks=pytest.mark.slow),
        ('hard', []),
        pytest.param('hard', ['--amp'], marks=pytest.mark.slow),
    ],
)
def test_distills_saves_the_student_alone_and_resumes(data, teacher, kind, amp, tmp_path):
    # The student differs from its teacher, so that a mix-up would not load.
    student = [option.replace('(8,8,8,128)', '(8,8,16,128)') for option in FEW]
    options = [*student, *teacher, f'model.distillation={kind}']
    printed = train_toy(DISTILL, data, *amp, options=options, cwd=tmp_path)
    assert re.search(r'teacher: loaded \d+ tensors from', printed)
    assert re.search(r'\[1\]\[3/3\].* loss_base: \d\S+  loss_distill: \d', printed)
    mixed_on_cpu = bool(amp) and not torch.cuda.is_available()
    assert ("type='CpuAmpOptimWrapper'" in printed) == mixed_on_cpu
    saved = torch.load(tmp_path / 'wd' / 'epoch_1.pth', weights_only=False)
    assert not any('teacher' in name for name in saved['state_dict'])
    groups = saved['optimizer']['param_groups']
    assert sum(len(group['params']) for group in groups) == len(saved['state_dict'])
    # The plain classifier evaluates it; no teacher is needed for that.
    arch = ['model.backbone.arch.widths=(8,8,16,128)', 'model.backbone.arch.depths=(1,1,1,1)']
    arguments = [DEMO, 'wd/epoch_1.pth', '--data', data, '--work-dir', 'test', '--cfg-options']
    _, printed = run_tool('test.py', *arguments, *FAST, *arch, cwd=tmp_path)
    assert 'accuracy/top1' in printed
    assert 'missing keys' not in printed and 'unexpected key' not in printed
    if amp:
        longer = [*options, 'train_cfg.max_epochs=2']
        printed = train_toy(DISTILL, data, *amp, '--resume', options=longer, cwd=tmp_path)
        assert 'resumed epoch: 1, iter: 3' in printed
        assert (tmp_path / 'wd' / 'epoch_2.pth').is_file()


def test_a_teacher_that_is_not_there_stops_the_training(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*FAST, 'model.teacher_checkpoint=gone.pth']
    with pytest.raises(UserError, match=r'checkpoint gone\.pth does not exist'):
        train([DISTILL, '--data', str(data), '--cfg-options', *options])


@pytest.mark.slow
def test_two_processes_distill(data, teacher, tmp_path):
    """DDP finds every parameter in use, with a teacher of its own in each process."""
    command = [ROOT / 'tools' / 'dist_train.sh', DISTILL, '2', '--data', data, '--work-dir', 'wd']
    done = subprocess.run(
        [*map(str, command), '--cfg-options', *FEW, *teacher],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env={**os.environ, 'PYTHON': sys.executable, 'PORT': '29641', 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\].*loss_distill: \d', done.stdout)
