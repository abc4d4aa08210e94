"""Small data and settings with which the tools run in seconds."""

import functools
import json
import os
import subprocess
import sys
import tempfile

from paths import ROOT

#: ``--cfg-options`` with which the training process reads the images itself.
NO_WORKERS = [
    f'{name}_dataloader.{setting}'
    for name in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]

#: ``--cfg-options`` that shrink a detector and its schedule to a few seconds.
TINY_DETECTOR = [
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=2',
    *NO_WORKERS,
    'default_hooks.logger.interval=1',
]
TINY_BACKBONE = [
    'model.backbone.arch.depths=(1,1,1,1)',
    'model.backbone.arch.widths=(8,64,128,192)',
    'model.backbone.arch.mlp_ratios=(1,1,1,1)',
]

#: The same for fpn_cyclemlp_b1_256x256_600i_small.
TINY_SEGMENTOR = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'model.data_preprocessor.size=(64,64)',
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
    'train_dataloader.dataset.pipeline.2.scale=(64,64)',
    'train_dataloader.batch_size=2',
    *NO_WORKERS,
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=2',
]


@functools.cache
def _server():
    """One for each process of the tests."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tests' / 'tool_server.py')],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def run_tool(tool, *arguments, cwd, check=True, fresh=False):
    """Run a script of ``tools/`` as a user does; returns (exit code, all it printed).

    In a copy of a process that has imported the toolboxes, or from the start with ``fresh``.
    """
    argv = [str(ROOT / 'tools' / tool), *map(str, arguments)]
    if fresh or not hasattr(os, 'fork'):
        done = subprocess.run(
            [sys.executable, *argv],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        code, printed = done.returncode, done.stdout
    else:
        with tempfile.NamedTemporaryFile('r') as output:
            job = dict(argv=argv, cwd=str(cwd), env=dict(os.environ), output=output.name)
            print(json.dumps(job), file=_server().stdin, flush=True)
            code, printed = int(_server().stdout.readline()), output.read()
    if check and code:
        raise AssertionError(f'{tool} ended with {code}:\n{printed[-6000:]}')
    return code, printed


def train_toy(config, data, *arguments, options, cwd):
    """Train into the folder ``wd`` with the options of a config; returns all that is printed."""
    _, printed = run_tool(
        'train.py',
        *(config, '--data', data, '--work-dir', 'wd', *arguments),
        *('--cfg-options', *options),
        cwd=cwd,
    )
    return printed
