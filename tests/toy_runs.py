"""Small data and settings with which the tools run in seconds."""

import subprocess
import sys

from paths import ROOT

#: ``--cfg-options`` with which the training process reads the images itself.
NO_WORKERS = [
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
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


def run_tool(tool, *arguments, cwd, check=True):
    """Run a script of ``tools/`` as a user does; returns (exit code, all it printed)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if check and done.returncode:
        raise AssertionError(f'{tool} ended with {done.returncode}:\n{done.stdout[-6000:]}')
    return done.returncode, done.stdout
