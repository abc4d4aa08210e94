"""tools/train.py and tools/test.py, as a user runs them, from another folder."""

import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from paths import ROOT
from PIL import Image
from toy_models import save_classifier
from toy_runs import NO_WORKERS, TINY_BACKBONE, TINY_DETECTOR, TINY_SEGMENTOR, run_tool, train_toy

from cyclemlp_mm.apis.test import test as evaluate
from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.errors import UserError

DET, SEG = 'retinanet_cyclemlp_demo', 'fpn_mpvit_tiny_256x256_600i_small'
TINY = [*TINY_DETECTOR, *TINY_BACKBONE]


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return shapes.write_coco(tmp_path_factory.mktemp('data') / 'shapes', 8, 4, (64, 64))


@pytest.fixture(scope='module')
def ade(tmp_path_factory):
    return shapes.write_ade20k(tmp_path_factory.mktemp('data') / 'shapes', 4, 2, (64, 64))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    return shapes.write_image_folders(tmp_path_factory.mktemp('data') / 'folders', 24, 8, (64, 64))


@pytest.fixture(scope='module')
def trained(coco, tmp_path_factory):
    """A work dir after one epoch, and what was printed."""
    folder = tmp_path_factory.mktemp('run')
    return folder / 'wd', train_toy(DET, coco, options=TINY, cwd=folder)


def evaluated(config, checkpoint, folder, *arguments):
    """What tools/test.py prints of a model in the work dir ``wd``."""
    model = [f'wd/{config}.py', f'wd/{checkpoint}']
    return run_tool('test.py', *model, *arguments, cwd=folder)[1]


def in_two_processes(config, data, options, folder, port):
    command = [ROOT / 'tools' / 'dist_train.sh', config, '2', '--data', data, '--work-dir', 'wd']
    env = {**os.environ, 'PYTHON': sys.executable, 'PORT': port, 'OMP_NUM_THREADS': '1'}
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [*map(str, command), '--cfg-options', *options]
    done = subprocess.run(command, cwd=folder, env=env, timeout=600, **output)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


#: Lines of other packages, as they begin.
FOREIGN = re.compile(
    'Could not import OneDL|faster_coco_eval|loading annotations into memory|creating index'
    '|Done .t=|index created|Loads checkpoint by|Failed to add|avg_non_ignore|FileClient'
    '|Failed to search registry|HardDiskBackend|The prefix is not set|paramwise_options'
    '|testing results of the whole dataset is empty|buffer is not writable|System environment'
    '|Config:|Hooks will be executed|out of bounds|UserWarning|The draw is False|FutureWarning'
    '|DeprecationWarning'
)


def check_screen(printed, folder=None):
    """No foreign line is printed, and few lines before the first loss; the log file has all."""
    assert not [line for line in printed.splitlines() if FOREIGN.search(line)]
    if folder is not None:
        lines = printed.splitlines()
        first = next(number for number, line in enumerate(lines) if ' loss: ' in line)
        assert first <= 15, printed
        assert [*folder.rglob('*.log')]
        log = ''.join(path.read_text() for path in folder.rglob('*.log'))
        assert 'System environment' in log and 'Config:' in log and 'Hooks will be' in log


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['detector', 'mask_detector', 'segmentor', 'classifier'])
def test_nothing_foreign_is_printed_by_infer(kind, coco, tmp_path, request):
    model = save_classifier(tmp_path) if kind == 'classifier' else request.getfixturevalue(kind)
    images = coco / 'val2017'
    printed = run_tool('infer.py', *model, images, '--out', 'found', cwd=tmp_path, fresh=True)[1]
    check_screen(printed)
    assert len(printed.splitlines()) <= 15, printed
    assert '4 images' in printed and len(list((tmp_path / 'found' / 'vis').iterdir())) == 4


def test_a_detector(trained, tmp_path):
    work_dir, printed = trained
    check_screen(printed, work_dir)
    for line in (
        r'train +8 images, \d+ objects, in \S+',
        r'val +4 images, \d+ objects, in \S+',
        'classes +4: circle, square, triangle, star',
        'weights +random',
        'device +',
        r'model +RetinaNet, \d\.\d M parameters; CycleMLP, \d\.\d M parameters',
        r'schedule +1 epoch of 4 iterations, batch 2; AdamW, learning rate 0\.001',
        r'written +wd \(log: wd/\d+_\d+\)',
    ):
        assert re.search(f'INFO - {line}', printed), line
    assert re.search(r'Epoch\(train\)\s+\[1\]\[4/4\].* loss: \d', printed)
    assert 'the batch is 2, but the learning rate was chosen for 8' in printed
    assert 'UserWarning: Converting a tensor' not in printed
    shutil.copytree(work_dir, tmp_path / 'wd')
    checkpoint = torch.load(tmp_path / 'wd' / 'epoch_1.pth', weights_only=False)
    # A score threshold that no box reaches, whatever one epoch has learnt on this processor.
    checkpoint['state_dict']['bbox_head.retina_cls.bias'].fill_(-20)
    torch.save(checkpoint, tmp_path / 'wd' / 'epoch_1.pth')
    outputs = ['--out', 'found.pkl', '--show-dir', 'drawn', '--work-dir', 'test']
    printed = evaluated(DET, 'epoch_1.pth', tmp_path, *outputs)
    assert len(pickle.loads((tmp_path / 'found.pkl').read_bytes())) == 4
    assert len(list((tmp_path / 'drawn').glob('*.jpg'))) == 4
    assert re.search('^pictures drawn$', printed, re.MULTILINE)
    assert 'Epoch(test) [1/1]' in printed
    check_screen(printed)
    assert 'no box was predicted in any image' in printed
    assert (tmp_path / 'test' / 'confusion_matrix.png').is_file()
    assert 'onfusion' not in (tmp_path / 'test' / f'{DET}.py').read_text()
    model = [str(work_dir / f'{DET}.py'), str(work_dir / 'epoch_1.pth')]
    (tmp_path / 'file').write_text('')
    for options, said in (
        (['--line-width', '2', '--hide-scores'], '--line-width, --hide-scores: nothing is drawn'),
        (['--out', str(tmp_path / 'file/found.pkl')], r'--out .*cannot be written \(Not a dir'),
        (['--show-dir', str(tmp_path / 'file/a')], r'--show-dir .*cannot be written \(Not a dir'),
    ):
        with pytest.raises(UserError, match=said):
            evaluate([*model, *options])


SHARDED = ['runner_type=FlexibleRunner']  # as the sharded configs have


@pytest.mark.few(1)
@pytest.mark.parametrize(
    'arguments, more', [(['--resume'], []), (['--resume', 'PATH'], SHARDED), ([], ['resume=True'])]
)
def test_resume_goes_on_where_it_stopped(trained, coco, tmp_path, arguments, more):
    target = tmp_path / 'wd'
    target.mkdir()
    checkpoint = shutil.copy(trained[0] / 'epoch_1.pth', target)
    (target / 'last_checkpoint').write_text(str(checkpoint))
    arguments = [str(checkpoint) if part == 'PATH' else part for part in arguments]
    options = [*TINY, 'train_cfg.max_epochs=2', *more]
    printed = train_toy(DET, coco, *arguments, options=options, cwd=tmp_path)
    assert 'resumed epoch: 1, iter: 4' in printed
    assert ('continues, as --resume auto' in printed) == (more == ['resume=True'])
    assert not re.search(r'Epoch\(train\)\s+\[1\]', printed)
    assert (target / 'epoch_2.pth').is_file()
    left = Config.fromfile(target / f'{DET}.py')  # who trains with it later starts again
    assert not left.resume and left.load_from is None


def test_a_config_that_resumes_another_run_is_asked_about(trained, coco, tmp_path, monkeypatch):
    """As mmengine leaves it in the work dir of a resumed run."""
    monkeypatch.chdir(tmp_path)
    options = ['--cfg-options', 'resume=True', f'load_from={trained[0] / "epoch_1.pth"}']
    with pytest.raises(UserError, match=r'config .* --resume .*epoch_1\.pth; .*resume=False'):
        train([DET, '--data', str(coco), '--work-dir', 'wd', *options])


def test_mixed_precision_and_a_scaled_learning_rate(coco, tmp_path):
    printed = train_toy(DET, coco, '--amp', '--auto-scale-lr', options=TINY, cwd=tmp_path)
    assert "type='CpuAmpOptimWrapper'" in (tmp_path / 'wd' / f'{DET}.py').read_text()
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', printed)]
    assert len(losses) == 4 and all(0 < loss < 100 for loss in losses)  # nan is neither
    assert 'LR is set based on batch size of 8 and the current batch size is 2' in printed
    assert 'Consider --auto-scale-lr' not in printed


def test_two_processes_without_a_gpu(coco, tmp_path):
    printed = in_two_processes(DET, coco, [*TINY, 'train_cfg.val_interval=1'], tmp_path, '29611')
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\]', printed)  # 8 images, 2 x 2 each
    assert 'Epoch(val) [1][1/1]' in printed  # 4 images: both processes evaluate
    torch.load(tmp_path / 'wd' / 'epoch_1.pth', weights_only=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_launchers_without_a_gpu():
    for launcher, message in dict(pytorch='start with torchrun', slurm='needs GPUs').items():
        with pytest.raises(UserError, match=message):
            train([DET, '--launcher', launcher])


def test_a_segmentor_and_its_folded_form(ade, tmp_path):
    printed = train_toy(SEG, ade, options=TINY_SEGMENTOR, cwd=tmp_path)
    check_screen(printed, tmp_path / 'wd')
    assert 'BN is used in place of SyncBN' in printed
    assert re.search(r'Iter\(train\) \[2/2\].* loss: \d', printed)
    assert 'star' in printed  # the class-wise table
    training = re.search(r'mIoU: ([\d.]+)', printed)[1]
    # Nothing but figures: mmengine shows all of a run's notes whose names begin with 'val'.
    [figures] = re.findall(r'Iter\(val\) \[2/2\]\s+(aAcc.*)', printed)
    assert set(re.findall(r'(\w+):', figures)) == {'aAcc', 'mIoU', 'mAcc', 'data_time', 'time'}
    printed = evaluated(SEG, 'iter_2.pth', tmp_path, '--show-dir', 'drawn', '--deploy')
    assert re.search(r'mIoU: ([\d.]+)', printed)[1] == training
    check_screen(printed)
    assert 'what can be folded was folded' in printed and 'most often confused: ' in printed
    assert len(list((tmp_path / 'drawn').glob('*.png'))) == 2
    assert (tmp_path / 'wd' / 'confusion_matrix.png').is_file()
    # What test.py writes into the work dir asks the next run again.
    assert 'DeployModel' not in (tmp_path / f'wd/{SEG}.py').read_text()


@pytest.mark.slow
def test_labels_counted_from_zero_with_a_void_class(ade, tmp_path, monkeypatch):
    own = shutil.copytree(ade, tmp_path / 'own')
    for path in own.glob('annotations/*/*.png'):
        labels = np.asarray(Image.open(path)).astype(int)
        Image.fromarray(np.where(labels == 0, 11, labels - 1).astype(np.uint8)).save(path)
    printed = train_toy(SEG, own, '--ignore-label', 11, options=TINY_SEGMENTOR, cwd=tmp_path)
    assert 'mIoU' in printed
    monkeypatch.chdir(tmp_path)
    arguments = ['--data', str(own), '--ignore-label', '12', '--cfg-options', *TINY_SEGMENTOR]
    said = r'labels 11 name no class(?s:.*)e\.g\. 11 in ADE_train_\d+\.png(?s:.*)--ignore-label'
    with pytest.raises(UserError, match=said):
        train([SEG, *arguments])


@pytest.mark.slow
def test_deploy_of_averaged_weights_evaluates_alike(folders, tmp_path):
    """EMAHook swaps weights before and after the test; the data have fewer than five classes."""
    options = [*NO_WORKERS, 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4']
    printed = train_toy('mpvit_tiny_in1k', folders, options=options, cwd=tmp_path)
    trained = re.search(r'\(val\).*accuracy/top1: ([\d.]+)', printed)[1]
    printed = evaluated('mpvit_tiny_in1k', 'epoch_1.pth', tmp_path, '--deploy')
    assert re.search(r'\(test\).*accuracy/top1: ([\d.]+)', printed)[1] == trained
    assert 'top5' not in printed


CLS, DISTILL = 'cyclemlp_demo', 'cyclemlp_demo_distill'
FAST = [*NO_WORKERS, 'randomness.seed=0']
FEW = """
    train_cfg.max_epochs=1 train_cfg.val_interval=1 train_dataloader.batch_size=8
    default_hooks.logger.interval=1 model.backbone.arch.widths=(8,8,8,128)"""
FEW = FEW.split()


@pytest.fixture(scope='module')
def teacher(folders, tmp_path_factory):
    """Options for a teacher: the demo's classifier after three iterations."""
    pytest.importorskip('mmpretrain')
    folder = tmp_path_factory.mktemp('teacher')
    printed = train_toy(CLS, folders, options=[*FAST, *FEW], cwd=folder)
    check_screen(printed, folder / 'wd')
    assert re.search(r'Epoch\(train\)\s+\[1\]\[3/3\].* loss: \d', printed)
    assert re.search(r'Epoch\(val\) \[1\].*accuracy/top1: \d', printed)
    checkpoint = folder / 'wd' / 'epoch_1.pth'
    widths = 'model.teacher.backbone.arch.widths=(8,8,8,128)'
    return [*FAST, f'model.teacher_checkpoint={checkpoint}', widths]


@pytest.mark.few(1)
@pytest.mark.parametrize('kind, amp', [('soft', ['--amp']), ('hard', [])])
def test_a_classifier_distills_saves_the_student_alone_and_resumes(
    folders, teacher, kind, amp, tmp_path
):
    # The student differs from its teacher, so that a mix-up would not load.
    student = [option.replace('(8,8,8,128)', '(8,8,16,128)') for option in FEW]
    options = [*student, *teacher, f'model.distillation={kind}']
    printed = train_toy(DISTILL, folders, *amp, options=options, cwd=tmp_path)
    assert re.search(r'teacher: loaded \d+ tensors from', printed)
    assert re.search(r'\[1\]\[3/3\].* loss_base: \d\S+  loss_distill: \d', printed)
    mixed_on_cpu = bool(amp) and not torch.cuda.is_available()
    config = (tmp_path / 'wd' / f'{DISTILL}.py').read_text()
    assert ("type='CpuAmpOptimWrapper'" in config) == mixed_on_cpu
    saved = torch.load(tmp_path / 'wd' / 'epoch_1.pth', weights_only=False)
    assert not any('teacher' in name for name in saved['state_dict'])
    groups = saved['optimizer']['param_groups']
    assert sum(len(group['params']) for group in groups) == len(saved['state_dict'])
    # The plain classifier evaluates it; no teacher is needed for that.
    arch = ['model.backbone.arch.widths=(8,8,16,128)', 'model.backbone.arch.depths=(1,1,1,1)']
    arguments = [CLS, 'wd/epoch_1.pth', '--data', folders, '--work-dir', 'test', '--cfg-options']
    _, printed = run_tool('test.py', *arguments, *FAST, *arch, cwd=tmp_path)
    assert 'accuracy/top1' in printed
    assert 'missing keys' not in printed and 'unexpected key' not in printed
    if kind == 'hard':
        longer = [*options, 'train_cfg.max_epochs=2']
        printed = train_toy(DISTILL, folders, '--resume', options=longer, cwd=tmp_path)
        assert 'resumed epoch: 1, iter: 3' in printed
        assert (tmp_path / 'wd' / 'epoch_2.pth').is_file()


@pytest.mark.slow
def test_two_processes_distill(folders, teacher, tmp_path):
    """DDP finds every parameter in use, with a teacher of its own in each process."""
    printed = in_two_processes(DISTILL, folders, [*FEW, *teacher], tmp_path, '29641')
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\].*loss_distill: \d', printed)


NEEDS_NO_TORCH = """
import io, runpy, sys
from contextlib import redirect_stdout
from pathlib import Path
sys.modules['torch'] = None
for tool in sorted(Path('tools').glob('*.py')):
    sys.argv, printed = [str(tool), '--help'], io.StringIO()
    sys.path[0] = 'tools'
    try:
        with redirect_stdout(printed):
            runpy.run_path(str(tool), run_name='__main__')
    except SystemExit as end:
        assert not end.code, tool
    text = printed.getvalue()
    assert text.startswith('usage:') and tool.name in text.split('examples:')[1], tool
"""


def test_every_tool_helps_without_importing_torch():
    command = [sys.executable, '-c', NEEDS_NO_TORCH]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('script', sorted(p.name for p in (ROOT / 'tools').glob('*.sh')))
def test_every_script_says_its_usage(script):
    done = subprocess.run([str(ROOT / 'tools' / script)], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert 'usage:' in done.stderr and 'set -euo' not in done.stderr
