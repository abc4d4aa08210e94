"""tools/train.py and tools/test.py on a detector, as a user runs them, from another folder."""

import pickle
import re

import pytest
import torch
from mmengine.config import Config
from paths import ROOT
from toy_runs import TINY_BACKBONE, TINY_DETECTOR, run_tool

from cyclemlp_mm.datasets.shapes import write_coco

DEMO = 'retinanet_cyclemlp_demo'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('data') / 'shapes', 8, 4, (64, 64))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A work dir after one epoch, and what was printed."""
    folder = tmp_path_factory.mktemp('run')
    _, printed = run_tool(
        'train.py',
        DEMO,
        '--data',
        data,
        '--work-dir',
        'wd',
        '--cfg-options',
        *TINY_DETECTOR,
        *TINY_BACKBONE,
        cwd=folder,
    )
    return folder / 'wd', printed


def test_training_logs_and_saves(trained):
    work_dir, printed = trained
    assert (work_dir / 'epoch_1.pth').is_file()
    assert re.search(r'Epoch\(train\)\s+\[1\]\[4/4\].* loss: \d', printed)
    assert 'the batch is 2, but the learning rate was chosen for 8' in printed
    assert 'UserWarning: Converting a tensor' not in printed


def test_testing_evaluates_dumps_and_draws(trained, data, tmp_path):
    work_dir, _ = trained
    _, printed = run_tool(
        'test.py',
        work_dir / f'{DEMO}.py',
        work_dir / 'epoch_1.pth',
        '--work-dir',
        'test',
        '--out',
        'found.pkl',
        '--show-dir',
        'drawn',
        cwd=tmp_path,
    )
    with (tmp_path / 'found.pkl').open('rb') as file:
        assert len(pickle.load(file)) == 4
    assert len(list((tmp_path / 'drawn').glob('*.jpg'))) == 4
    assert re.search('^pictures drawn$', printed, re.MULTILINE)
    assert 'Epoch(test) [1/1]' in printed
    (tmp_path / 'file').write_text('')
    for arguments in (['--out', 'file/found.pkl'], ['--show-dir', 'file/drawn']):
        code, printed = run_tool(
            'test.py',
            work_dir / f'{DEMO}.py',
            work_dir / 'epoch_1.pth',
            *arguments,
            cwd=tmp_path,
            check=False,
        )
        assert code == 2 and 'Epoch(test)' not in printed
        assert f'error: {" ".join(arguments)} cannot be written (Not a directory)' in printed


@pytest.mark.parametrize(
    'resume', [['--resume'], ['--resume', 'auto'], ['--resume', 'PATH'], ['resume=True']]
)
def test_resume_goes_on_where_it_stopped(trained, data, tmp_path, resume):
    work_dir, _ = trained
    target = tmp_path / 'wd'
    target.mkdir()
    checkpoint = target / 'epoch_1.pth'
    checkpoint.write_bytes((work_dir / 'epoch_1.pth').read_bytes())
    (target / 'last_checkpoint').write_text(str(checkpoint))
    resume = [str(checkpoint) if part == 'PATH' else part for part in resume]
    options = [*TINY_DETECTOR, *TINY_BACKBONE, 'train_cfg.max_epochs=2']
    by_config = resume == ['resume=True']
    resume, options = ([], options + resume) if by_config else (resume, options)
    _, printed = run_tool(
        'train.py',
        DEMO,
        '--data',
        data,
        '--work-dir',
        'wd',
        *resume,
        '--cfg-options',
        *options,
        cwd=tmp_path,
    )
    assert 'resumed epoch: 1, iter: 4' in printed
    assert ('continues, as --resume auto' in printed) == by_config
    assert not re.search(r'Epoch\(train\)\s+\[1\]', printed)
    assert (target / 'epoch_2.pth').is_file()
    left = Config.fromfile(target / f'{DEMO}.py')  # who trains with it later starts again
    assert not left.resume and left.load_from is None


def test_a_config_that_resumes_another_run_is_asked_about(trained, data, tmp_path):
    """As mmengine leaves it in the work dir of a resumed run."""
    work_dir, _ = trained
    file = work_dir / 'epoch_1.pth'
    code, printed = run_tool(
        'train.py',
        DEMO,
        '--data',
        data,
        '--work-dir',
        'wd',
        '--cfg-options',
        'resume=True',
        f'load_from={file}',
        cwd=tmp_path,
        check=False,
    )
    assert code == 2, printed[-3000:]
    assert re.search(rf'error: config .* --resume {file}; to start again, --cfg-opt', printed)


def test_resume_with_the_runner_of_the_sharded_configs(trained, data, tmp_path):
    """FlexibleRunner, without the sharding, which takes GPUs."""
    work_dir, _ = trained
    _, printed = run_tool(
        'train.py',
        DEMO,
        '--data',
        data,
        '--work-dir',
        'wd',
        '--resume',
        work_dir / 'epoch_1.pth',
        '--cfg-options',
        *TINY_DETECTOR,
        *TINY_BACKBONE,
        'train_cfg.max_epochs=2',
        'runner_type=FlexibleRunner',
        cwd=tmp_path,
    )
    assert 'resumed epoch: 1, iter: 4' in printed
    assert (tmp_path / 'wd' / 'epoch_2.pth').is_file()


def test_mixed_precision(data, tmp_path):
    _, printed = run_tool(
        'train.py',
        DEMO,
        '--data',
        data,
        '--work-dir',
        'wd',
        '--amp',
        '--cfg-options',
        *TINY_DETECTOR,
        *TINY_BACKBONE,
        cwd=tmp_path,
    )
    assert 'AmpOptimWrapper' in printed
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', printed)]
    assert len(losses) == 4 and all(0 < loss < 100 for loss in losses)  # nan is neither


def test_scaled_learning_rate(data, tmp_path):
    _, printed = run_tool(
        'train.py',
        DEMO,
        '--data',
        data,
        '--work-dir',
        'wd',
        '--auto-scale-lr',
        '--cfg-options',
        *TINY_DETECTOR,
        *TINY_BACKBONE,
        cwd=tmp_path,
    )
    assert 'LR is set based on batch size of 8 and the current batch size is 2' in printed
    assert 'consider --auto-scale-lr' not in printed


def test_two_processes_without_a_gpu(data, tmp_path):
    import os
    import subprocess
    import sys

    done = subprocess.run(
        [
            str(ROOT / 'tools' / 'dist_train.sh'),
            DEMO,
            '2',
            '--data',
            str(data),
            '--work-dir',
            'wd',
            '--cfg-options',
            *TINY_DETECTOR,
            *TINY_BACKBONE,
            'train_cfg.val_interval=1',
        ],
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
def test_errors_are_a_sentence_and_exit_with_2(arguments, message, tmp_path):
    if torch.cuda.is_available() and '--launcher' in arguments:
        pytest.skip('this machine has a GPU')
    code, printed = run_tool('train.py', *arguments, cwd=tmp_path, check=False)
    assert code == 2
    assert re.search(rf'^error: .*{message}', printed, re.MULTILINE)
    assert 'Traceback' not in printed


def test_weights_that_do_not_fit_stop_the_training_before_it_begins(data, tmp_path):
    torch.save({'stem.proj.bias': torch.zeros(8)}, tmp_path / 'half.pth')
    for name, message in (('half.pth', 'tensors are missing'), ('gone.pth', 'does not exist')):
        code, printed = run_tool(
            'train.py',
            DEMO,
            '--data',
            data,
            '--work-dir',
            'wd',
            '--cfg-options',
            *TINY_DETECTOR,
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint={name}',
            cwd=tmp_path,
            check=False,
        )
        assert code == 2
        assert f'error: checkpoint {name}' in printed and message in printed
        assert 'Epoch(train)' not in printed


@pytest.mark.parametrize('tool', sorted(p.name for p in (ROOT / 'tools').glob('*.py')))
def test_every_tool_helps(tool, tmp_path):
    _, printed = run_tool(tool, '--help', cwd=tmp_path, fresh=True)
    assert printed.startswith('usage:')
    assert re.search(rf'^examples:\n(  .*\n)*?  .*{tool}', printed, re.MULTILINE)


@pytest.mark.parametrize('script', sorted(p.name for p in (ROOT / 'tools').glob('*.sh')))
def test_every_script_says_its_usage(script):
    import subprocess

    done = subprocess.run([str(ROOT / 'tools' / script)], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert 'usage:' in done.stderr and 'set -euo' not in done.stderr
