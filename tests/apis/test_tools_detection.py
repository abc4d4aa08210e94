"""tools/train.py and tools/test.py on a detector, as a user runs them, from another folder."""

import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from paths import ROOT
from toy_runs import TINY_BACKBONE, TINY_DETECTOR, run_tool, train_toy

from cyclemlp_mm.apis.arguments import parse
from cyclemlp_mm.apis.test import test as evaluate
from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.errors import UserError

DEMO = 'retinanet_cyclemlp_demo'
TINY = [*TINY_DETECTOR, *TINY_BACKBONE]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('data') / 'shapes', 8, 4, (64, 64))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A work dir after one epoch, and what was printed."""
    folder = tmp_path_factory.mktemp('run')
    return folder / 'wd', train_toy(DEMO, data, options=TINY, cwd=folder)


def test_training_logs_and_saves(trained):
    work_dir, printed = trained
    assert (work_dir / 'epoch_1.pth').is_file()
    assert re.search(r'Epoch\(train\)\s+\[1\]\[4/4\].* loss: \d', printed)
    assert 'the batch is 2, but the learning rate was chosen for 8' in printed
    assert 'UserWarning: Converting a tensor' not in printed


def test_testing_evaluates_dumps_and_draws(trained, tmp_path):
    work_dir, _ = trained
    model = [str(work_dir / f'{DEMO}.py'), str(work_dir / 'epoch_1.pth')]
    outputs = ['--out', 'found.pkl', '--show-dir', 'drawn']
    _, printed = run_tool('test.py', *model, '--work-dir', 'test', *outputs, cwd=tmp_path)
    with (tmp_path / 'found.pkl').open('rb') as file:
        assert len(pickle.load(file)) == 4
    assert len(list((tmp_path / 'drawn').glob('*.jpg'))) == 4
    assert re.search('^pictures drawn$', printed, re.MULTILINE)
    assert 'Epoch(test) [1/1]' in printed
    (tmp_path / 'file').write_text('')
    for option, name in (('--out', 'found.pkl'), ('--show-dir', 'drawn')):
        with pytest.raises(UserError, match=rf'{option} .*{name} cannot be written \(Not a dir'):
            evaluate([*model, option, str(tmp_path / 'file' / name)])


@pytest.mark.parametrize(
    'arguments, more',
    [
        (['--resume'], []),
        (['--resume', 'PATH'], ['runner_type=FlexibleRunner']),  # as the sharded configs have
        ([], ['resume=True']),
    ],
)
def test_resume_goes_on_where_it_stopped(trained, data, tmp_path, arguments, more):
    target = tmp_path / 'wd'
    target.mkdir()
    checkpoint = target / 'epoch_1.pth'
    checkpoint.write_bytes((trained[0] / 'epoch_1.pth').read_bytes())
    (target / 'last_checkpoint').write_text(str(checkpoint))
    arguments = [str(checkpoint) if part == 'PATH' else part for part in arguments]
    options = [*TINY, 'train_cfg.max_epochs=2', *more]
    printed = train_toy(DEMO, data, *arguments, options=options, cwd=tmp_path)
    assert 'resumed epoch: 1, iter: 4' in printed
    assert ('continues, as --resume auto' in printed) == (more == ['resume=True'])
    assert not re.search(r'Epoch\(train\)\s+\[1\]', printed)
    assert (target / 'epoch_2.pth').is_file()
    left = Config.fromfile(target / f'{DEMO}.py')  # who trains with it later starts again
    assert not left.resume and left.load_from is None


def test_resume_without_a_value():
    assert parse('train', [DEMO, '--resume']).resume == 'auto'
    assert parse('train', [DEMO]).resume is None


def test_a_config_that_resumes_another_run_is_asked_about(trained, data, tmp_path, monkeypatch):
    """As mmengine leaves it in the work dir of a resumed run."""
    monkeypatch.chdir(tmp_path)
    file = trained[0] / 'epoch_1.pth'
    options = ['--cfg-options', 'resume=True', f'load_from={file}']
    with pytest.raises(UserError, match=rf'config .* --resume {file}; .*resume=False'):
        train([DEMO, '--data', str(data), '--work-dir', 'wd', *options])


def test_mixed_precision_and_a_scaled_learning_rate(data, tmp_path):
    printed = train_toy(DEMO, data, '--amp', '--auto-scale-lr', options=TINY, cwd=tmp_path)
    assert 'AmpOptimWrapper' in printed
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', printed)]
    assert len(losses) == 4 and all(0 < loss < 100 for loss in losses)  # nan is neither
    assert 'LR is set based on batch size of 8 and the current batch size is 2' in printed
    assert 'consider --auto-scale-lr' not in printed


def test_two_processes_without_a_gpu(data, tmp_path):
    command = [ROOT / 'tools' / 'dist_train.sh', DEMO, '2', '--data', data, '--work-dir', 'wd']
    done = subprocess.run(
        [*map(str, command), '--cfg-options', *TINY, 'train_cfg.val_interval=1'],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env={**os.environ, 'PYTHON': sys.executable, 'PORT': '29611', 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\]', done.stdout)  # 8 images, 2 x 2 each
    assert 'Epoch(val) [1][1/1]' in done.stdout  # 4 images: both processes evaluate
    torch.load(tmp_path / 'wd' / 'epoch_1.pth', weights_only=False)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['no_such_config'], r'neither a file nor one of the \d+ shipped configs'),
        (['retinanet_cyclemlp_b2_fpn_1x_cocoa'], 'Did you mean retinanet_cyclemlp_b2_fpn_1x_coco'),
        ([DEMO, '--data', 'nowhere'], 'no such folder'),
        ([DEMO, '--classes', 'a'], 'give it too'),
        ([DEMO, '--launcher', 'pytorch'], 'start with torchrun'),
        ([DEMO, '--launcher', 'slurm'], 'needs GPUs'),
    ],
)
def test_errors_of_the_command_line(arguments, message):
    if torch.cuda.is_available() and '--launcher' in arguments:
        pytest.skip('this machine has a GPU')
    with pytest.raises(UserError, match=message):
        train(arguments)


@pytest.mark.parametrize(
    'name, message', [('half.pth', 'tensors are missing'), ('gone.pth', 'does not exist')]
)
def test_weights_that_do_not_fit_stop_the_training_before_it_begins(name, message, data, tmp_path):
    torch.save({'stem.proj.bias': torch.zeros(8)}, tmp_path / 'half.pth')
    pretrained = [f'checkpoint={name}', 'type=Pretrained']
    code, printed = run_tool(
        'train.py',
        *(DEMO, '--data', data, '--work-dir', 'wd', '--cfg-options', *TINY_DETECTOR),
        *(f'model.backbone.init_cfg.{setting}' for setting in pretrained),
        cwd=tmp_path,
        check=False,
    )
    assert code == 2
    assert f'error: checkpoint {name}' in printed and message in printed
    assert 'Epoch(train)' not in printed


@pytest.mark.parametrize('tool', sorted(p.name for p in (ROOT / 'tools').glob('*.py')))
def test_every_tool_helps_without_importing_torch(tool, tmp_path):
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, str(ROOT / 'tools' / tool), '--help']
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith('usage:'), done.stderr
    assert re.search(rf'^examples:\n(  .*\n)*?  .*{tool}', done.stdout, re.MULTILINE)


@pytest.mark.parametrize('script', sorted(p.name for p in (ROOT / 'tools').glob('*.sh')))
def test_every_script_says_its_usage(script):
    done = subprocess.run([str(ROOT / 'tools' / script)], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert 'usage:' in done.stderr and 'set -euo' not in done.stderr
