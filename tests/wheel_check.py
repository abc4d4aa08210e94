"""Uses an installed wheel as a stranger would: builds a model, and trains a shipped config.

A script, run by another interpreter from another folder; it writes into the current folder::

    python wheel_check.py SITE

SITE is the folder the package must come from, not an editable install's. It trains two iterations
on two generated images, with the wheel's own ``tools/train.py``.
"""

import subprocess
import sys
from pathlib import Path

import torch
from mmengine.registry import MODELS

import cyclemlp_mm
from cyclemlp_mm.datasets.shapes import write_coco

PACKAGE = Path(cyclemlp_mm.__file__).resolve().parent
MIM = PACKAGE / '.mim'
CONFIG = MIM / 'configs' / 'retinanet_cyclemlp_b1_fpn_1x_coco.py'

# Small images, one at a time, no workers, nothing downloaded.
OPTIONS = (
    'model.backbone.init_cfg=None',
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=1',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'train_dataloader.dataset.pipeline.2.scale=(96,96)',
    'val_dataloader.dataset.pipeline.1.scale=(96,96)',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1',
)


def check_origin():
    """The wheel's package, not the checkout's, and light to import."""
    if Path(sys.argv[1]).resolve() not in PACKAGE.parents:
        raise SystemExit(f'imported another one than the wheel: {PACKAGE}')
    heavy = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain'} & set(sys.modules)
    if heavy:
        raise SystemExit(f'import cyclemlp_mm pulled in {sorted(heavy)}')
    print(f'cyclemlp_mm {cyclemlp_mm.__version__} from the wheel')


def check_build():
    """The backbone builds from the root registry and runs."""
    model = MODELS.build(dict(type='CycleMLP', arch='b1')).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 64))
    print('CycleMLP-B1:', [tuple(x.shape) for x in maps])
    if [x.shape[1] for x in maps] != list(model.out_channels):
        raise SystemExit(f'channels {model.out_channels} announced, other ones returned')


def check_training():
    """A shipped config trains two iterations by the shipped tool."""
    write_coco('data', num_train=2, num_val=1, size=(96, 96), seed=0)
    command = [sys.executable, MIM / 'tools' / 'train.py', CONFIG, '--data', 'data']
    command += ['--work-dir', 'run', '--cfg-options', *OPTIONS]
    subprocess.run([str(part) for part in command], check=True)
    checkpoint = torch.load('run/epoch_1.pth', map_location='cpu', weights_only=False)
    if checkpoint['meta']['iter'] != 2:
        raise SystemExit(f'trained {checkpoint["meta"]["iter"]} iterations instead of 2')
    print('trained 2 iterations')


if __name__ == '__main__':
    check_origin()
    check_build()
    check_training()
    print('WHEEL WORKS')
