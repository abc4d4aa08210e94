#!/usr/bin/env python
"""Train a small RetinaNet-CycleMLP on generated images and draw what it finds."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cyclemlp_mm.apis.arguments import Parser
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.errors import UserError

CONFIG = 'retinanet_cyclemlp_demo'
NUM_TRAIN, NUM_VAL, SIZE = 600, 100, (128, 128)
EXAMPLES = '  tools/demo.py\n  tools/demo.py --work-dir my_demo\n'
WORK_DIR = dict(default='work_dirs/demo', help='folder for everything (default: %(default)s)')


def _parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return Parser(__doc__, EXAMPLES, {'--work-dir': WORK_DIR}).parse_args(argv)


def demo(argv: Sequence[str] | None = None) -> float:
    """Generate data, train with ``tools/train.py``, evaluate and draw.

    Returns the box AP50 on the validation images. Raises a UserError that names the log if training
    fails.
    """
    work_dir = Path(_parse(argv).work_dir)
    # Slow to import, and not needed for --help.
    from cyclemlp_mm.apis.visualize import visualize
    from cyclemlp_mm.datasets.shapes import write_coco
    from cyclemlp_mm.visualization import read_scalars

    work_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data = write_coco(work_dir / 'data', NUM_TRAIN, NUM_VAL, SIZE)
    print(f'data       {NUM_TRAIN} + {NUM_VAL} images of shapes in {data}', flush=True)
    _train(data, work_dir)
    name = 'coco/bbox_mAP_50'
    ap50 = [line[name] for line in read_scalars(work_dir) if name in line][-1]
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    visualize(['curves', str(work_dir), '--out', str(work_dir / 'loss_curve.png')])
    gallery = ['gallery', str(work_dir / f'{CONFIG}.py'), checkpoint, '--limit', '6']
    gallery += ['--score-thr', '0.5', '--device', 'cpu']
    visualize([*gallery, '--out', str(work_dir / 'predictions.png')])
    print(f'box AP50   {ap50:.3f} on the {NUM_VAL} validation images')
    print(f'checkpoint {checkpoint}')
    print(f'done in {time.perf_counter() - start:.0f} s')
    return ap50


def _train(data: Path, work_dir: Path) -> None:
    """Run ``tools/train.py``, show its progress lines, and keep all it prints in a log."""
    arguments = [CONFIG, '--data', str(data), '--work-dir', str(work_dir)]
    print('training   tools/train.py', *arguments, flush=True)
    command = [sys.executable, str(Path(__file__).with_name('train.py')), *arguments]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = work_dir / 'train.log'
    with log.open('w') as file, subprocess.Popen(command, **pipe) as process:
        for line in process.stdout:
            file.write(line)
            if 'Epoch(' in line:
                print('          ', line.split(' - ')[-1].strip(), flush=True)
    if process.returncode:
        tail = '\n'.join(log.read_text().splitlines()[-15:])
        raise UserError(f'training failed; all it printed is in {log}, at the end:\n{tail}')


if __name__ == '__main__':
    _parse()  # --help does not wait for torch
    run_tool(demo)
