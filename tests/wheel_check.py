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
OPTIONS = """
    model.backbone.init_cfg=None train_cfg.max_epochs=1 train_dataloader.batch_size=1
    train_dataloader.num_workers=0 train_dataloader.persistent_workers=False
    val_dataloader.num_workers=0 val_dataloader.persistent_workers=False
    train_dataloader.dataset.pipeline.2.scale=(96,96)
    val_dataloader.dataset.pipeline.1.scale=(96,96) default_hooks.logger.interval=1
"""

if __name__ == '__main__':
    assert Path(sys.argv[1]).resolve() in PACKAGE.parents, f'not imported from the wheel: {PACKAGE}'
    heavy = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain'} & set(sys.modules)
    assert not heavy, f'import cyclemlp_mm imported {sorted(heavy)}'
    print(f'cyclemlp_mm {cyclemlp_mm.__version__} from the wheel')

    model = MODELS.build(dict(type='CycleMLP', arch='b1')).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 64))
    print('CycleMLP-B1:', [tuple(x.shape) for x in maps])
    assert [x.shape[1] for x in maps] == list(model.out_channels)

    write_coco('data', num_train=2, num_val=1, size=(96, 96), seed=0)
    command = [sys.executable, str(MIM / 'tools' / 'train.py'), str(CONFIG), '--data', 'data']
    command += ['--work-dir', 'run', '--cfg-options', *OPTIONS.split()]
    subprocess.run(command, check=True)
    checkpoint = torch.load('run/epoch_1.pth', map_location='cpu', weights_only=False)
    assert checkpoint['meta']['iter'] == 2
    print('WHEEL WORKS')
