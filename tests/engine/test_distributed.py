"""Several processes without a GPU: the same numbers as one, and together to the end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import ROOT
from prove_resume import CONFIG, LOOPS
from toy_runs import NO_WORKERS

from cyclemlp_mm.datasets.shapes import write_coco, write_image_folders
from cyclemlp_mm.engine import configs_dir, load_config
from cyclemlp_mm.weights import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TESTS = ROOT / 'tests'
TRAIN, DIST_TRAIN = ROOT / 'tools' / 'train.py', ROOT / 'tools' / 'dist_train.sh'
SHAPES = ['--data', 'shapes', '--work-dir', 'wd']
IMPORTS = "custom_imports = dict(imports=['cyclemlp_mm', 'distributed_hooks'])\n"
ENV = {
    **os.environ,
    'PYTHON': sys.executable,
    'OMP_NUM_THREADS': '1',
    'PYTHONPATH': os.pathsep.join([str(ROOT), str(TESTS)]),
}


def largest_difference(one, other):
    """Of two lists of numbers; nan where there is one, which Python's max() may pass over."""
    return np.abs(np.subtract(one, other)).max()


def run(command, cwd, check=True, **kwargs):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env={**ENV, **kwargs},
    )
    if check:
        assert done.returncode == 0, done.stdout[-5000:]
    return done


def write_detector(folder, hooks=''):
    """The small detector of prove_resume.py, with hooks of distributed_hooks.py."""
    write_coco(folder / 'shapes', 24, 5, (64, 64))
    base = configs_dir() / 'retinanet_cyclemlp_demo.py'
    settings = dict(LOOPS['epoch'], base=base, seed=0, batch=1)
    (folder / 'config.py').write_text(CONFIG.format(**settings) + IMPORTS + hooks)


def test_the_loss_is_that_of_one_process_with_twice_the_batch(tmp_path):
    write_image_folders(tmp_path / 'data', 40, 4, (64, 64))
    (tmp_path / 'config.py').write_text(
        f"_base_ = '{configs_dir() / 'cyclemlp_demo.py'}'\n{IMPORTS}"
        "custom_hooks = [dict(type='KeepMeanLoss')]\n"
    )
    losses = {}
    for processes, start in (
        (1, [sys.executable, TRAIN, 'config.py']),
        (2, [DIST_TRAIN, 'config.py', 2]),
    ):
        work_dir = f'wd{processes}'
        options = [f'train_dataloader.batch_size={8 // processes}', 'train_cfg.max_epochs=4']
        options += ['train_cfg.val_interval=9', 'randomness.seed=0', *NO_WORKERS]
        options.append('train_dataloader.num_workers=1')
        data = ['--data', 'data', '--work-dir', work_dir]
        run([*start, *data, '--cfg-options', *options], tmp_path)
        losses[processes] = json.loads((tmp_path / work_dir / 'losses.json').read_text())[:20]
    assert len(losses[1]) == len(losses[2]) == 20
    worst = largest_difference(losses[1], losses[2])
    print(f'largest difference of the loss over 20 iterations: {worst:.2g}')
    assert worst < 1e-5
    assert losses[1][0] != losses[1][-1]


def test_two_machines_train_and_evaluate_as_one_process(tmp_path):
    """Five images on two processes: the shards are uneven."""
    if run(['unshare', '-rmn', 'ip', 'netns'], tmp_path, check=False).returncode:
        pytest.skip('no network namespaces here (unshare -rmn, ip)')
    write_detector(tmp_path)
    script = [TESTS / 'two_machines.sh', DIST_TRAIN, 'config.py', 1, *SHAPES]
    done = run(['unshare', '-rmn', 'bash', *script], tmp_path)
    assert re.search(r'Epoch\(train\)\s+\[1\]\[12/12\]', done.stdout)  # 24 images, 2 x 1 each
    together = re.findall(r'coco/bbox_mAP: ([\d.]+) ', done.stdout)[-1]
    test = [sys.executable, ROOT / 'tools' / 'test.py', 'wd/config.py', 'wd/epoch_3.pth']
    alone = run([*test, '--work-dir', 'wt'], tmp_path)
    assert re.findall(r'coco/bbox_mAP: ([\d.]+) ', alone.stdout)[-1] == together
    print(f'box AP of two machines and of one process: {together}')
    assert float(together) > 0


def test_a_process_that_dies_takes_the_other_one_down(tmp_path):
    write_detector(tmp_path, "custom_hooks = [dict(type='DieAt', iteration=3)]")
    done = run([DIST_TRAIN, 'config.py', 2, *SHAPES], tmp_path, check=False)
    took = time.time() - float((tmp_path / 'wd' / 'died_at').read_text())
    assert done.returncode not in (0, 75)
    print(f'down {took:.1f} s after the death')
    assert took < 60
    assert 'error: unexpected ZeroDivisionError: this process dies on purpose' in done.stdout
    first = done.stdout.index('Traceback')
    assert 'ZeroDivisionError: this process dies on purpose' in done.stdout[first : first + 9000]


def test_sigterm_to_the_launcher_saves_and_stops_all(tmp_path):
    write_detector(tmp_path)
    process = subprocess.Popen(
        [DIST_TRAIN, 'config.py', '2', *SHAPES, '--cfg-options', 'train_cfg.max_epochs=90'],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENV,
    )
    for line in process.stdout:
        if 'Epoch(train)' in line:
            process.send_signal(signal.SIGTERM)
            break
    printed = process.communicate(timeout=120)[0]
    path = re.search(r'after iteration \d+: saved (\S+);', printed)[1]
    read_checkpoint(tmp_path / path)


def test_a_port_that_is_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run([DIST_TRAIN, 'retinanet_cyclemlp_demo', 2], tmp_path, check=False, PORT=port)
    assert done.returncode == 2
    assert re.fullmatch(rf'error: port {port} is in use .*PORT=…\n', done.stdout)


def test_the_sharded_config_is_one_that_mmengine_knows():
    """Also where PyTorch is too old for test_sharded.py."""
    from mmengine.registry import FUNCTIONS, MODEL_WRAPPERS, RUNNERS, STRATEGIES

    cfg = load_config('upernet_cyclemlp_b5_512x512_160k_ade20k_fsdp')
    assert RUNNERS.get(cfg.runner_type) and STRATEGIES.get(cfg.strategy.type)
    assert MODEL_WRAPPERS.get(cfg.strategy.model_wrapper.type)
    assert FUNCTIONS.get(cfg.strategy.model_wrapper.auto_wrap_policy.type)
