"""How a process ends that shares a run without a GPU: its work done, no abort."""

import os
import subprocess
import sys

import pytest
from mmengine.config import Config
from paths import ROOT
from prove_resume import free_port

from cyclemlp_mm.engine import is_first_process, prepare_launch

SCRIPT = """
import atexit, os, sys, threading, time
from mmengine.config import Config
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.engine import finish_launch, prepare_launch
from cyclemlp_mm.errors import UserError

class Kept:
    def __del__(self, write=os.write):  # print may be gone by then
        write(1, b'interpreter taken down\\n')

sys.kept = Kept()  # what a module holds may outlive the interpreter
atexit.register(lambda: print('exit handler ran'))

def late():
    time.sleep(0.5)
    print('thread ended')

def tool():
    prepare_launch(Config(), sys.argv[1])
    threading.Thread(target=late).start()
    print('work done')
    {ending}
    finish_launch()

run_tool(tool)
"""
ENDINGS = {
    'well': ('pass', 0, ''),
    'error of the user': ("raise UserError('fix this')", 2, 'error: fix this'),
    'defect': ('1 / 0', 1, 'ZeroDivisionError: division by zero'),
    'status': ('sys.exit(75)', 75, ''),
    'no status': ('sys.exit()', 0, ''),
    'sentence': ("sys.exit('enough')", 1, 'enough'),
    'interrupted': ('raise KeyboardInterrupt', 130, 'interrupted'),
}


@pytest.mark.parametrize(
    'launcher, variable',
    [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')],
)
def test_a_rank_counts_for_its_own_launcher_only(launcher, variable, monkeypatch):
    """A sweep's jobs, started by srun without a launcher, each lock and check."""
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, '3')
    launchers = ('none', 'pytorch', 'slurm', 'mpi')
    assert [name for name in launchers if not is_first_process(name)] == [launcher]


@pytest.mark.parametrize(
    'given, expected',
    [
        ({}, dict(type='MMDistributedDataParallel', find_unused_parameters=False)),
        (dict(find_unused_parameters=True), dict(find_unused_parameters=True)),
        (
            dict(model_wrapper_cfg=dict(type='Other', static_graph=True)),
            dict(type='Other', static_graph=True, broadcast_buffers=False),
        ),
    ],
)
def test_the_wrapper_of_a_config_is_kept_without_a_gpu(given, expected, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: True)
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '0')
    cfg = Config(given)
    prepare_launch(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg.device_ids is None
    assert {key: cfg.model_wrapper_cfg[key] for key in expected} == expected


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ('launcher', 'ending'),
    [('none', 'well'), ('none', 'defect'), *(('pytorch', ending) for ending in ENDINGS)],
)
def test_exit_status_output_and_handlers(launcher, ending, tmp_path):
    """The interpreter stays up under gloo, whose threads would abort in one that goes down."""
    code, status, says = ENDINGS[ending]
    (tmp_path / 'tool.py').write_text(SCRIPT.replace('{ending}', code))
    variables = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1')
    environment = {
        **os.environ,
        **variables,
        'PYTHONPATH': str(ROOT),
        'MASTER_PORT': str(free_port()),
        'CUDA_VISIBLE_DEVICES': '',
    }
    done = subprocess.run(
        [sys.executable, 'tool.py', launcher],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    assert done.returncode == status, done.stdout
    assert says in done.stdout
    lines = done.stdout.splitlines()
    ended = [line for line in lines if line in ('work done', 'thread ended', 'exit handler ran')]
    assert ended == ['work done', 'thread ended', 'exit handler ran']
    assert ('interpreter taken down' in lines) == (launcher == 'none')
