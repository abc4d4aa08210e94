#!/usr/bin/env python
"""``make demo``: generated images in, a trained detector and pictures out."""

from __future__ import annotations

import argparse
import json
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
NUM_DRAWN = 6


def demo(argv: Sequence[str] | None = None) -> float:
    """Generate data, train with ``tools/train.py``, evaluate and draw.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Returns:
        float: Box AP50 on the validation images.

    Raises:
        UserError: Training failed; names the log.
    """
    work_dir = Path(_parse_args(argv).work_dir)
    # Slow to import, and not needed for --help.
    from cyclemlp_mm.datasets.shapes import write_coco
    from cyclemlp_mm.visualization import draw_loss_curve

    work_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data = write_coco(work_dir / 'data', NUM_TRAIN, NUM_VAL, SIZE)
    print(f'data       {NUM_TRAIN} + {NUM_VAL} images of shapes in {data}', flush=True)
    _train(data, work_dir)
    ap50 = _last_metric(work_dir, 'coco/bbox_mAP_50')
    curve = draw_loss_curve(work_dir, work_dir / 'loss_curve.png')
    gallery = _draw_predictions(data, work_dir)
    print(f'box AP50   {ap50:.3f} on the {NUM_VAL} validation images')
    print(f'pictures   {gallery}\n           {curve}')
    print(f'checkpoint {_checkpoint(work_dir)}')
    print(f'done in {time.perf_counter() - start:.0f} s')
    return ap50


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        'Train a small RetinaNet-CycleMLP on generated images and draw what it finds',
        '  tools/demo.py\n  tools/demo.py --work-dir my_demo\n',
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/demo', help='folder for everything (default: %(default)s)'
    )
    return parser.parse_args(argv)


def _train(data: Path, work_dir: Path) -> None:
    """Run ``tools/train.py``, show its progress lines, and keep all it prints in a log."""
    train = Path(__file__).with_name('train.py')
    command = [sys.executable, str(train), CONFIG, '--data', str(data)]
    command += ['--work-dir', str(work_dir)]
    print('training   tools/train.py', *command[2:], flush=True)
    log = work_dir / 'train.log'
    with (
        log.open('w') as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            if 'Epoch(' in line:
                print('          ', line.split(' - ')[-1].strip(), flush=True)
    if process.returncode:
        tail = '\n'.join(log.read_text().splitlines()[-15:])
        raise UserError(f'training failed; all it printed is in {log}, at the end:\n{tail}')


def _last_metric(work_dir: Path, name: str) -> float:
    from cyclemlp_mm.visualization import read_scalars

    return [line[name] for line in read_scalars(work_dir) if name in line][-1]


def _checkpoint(work_dir: Path) -> Path:
    return Path((work_dir / 'last_checkpoint').read_text().strip())


def _draw_predictions(data: Path, work_dir: Path) -> Path:
    import numpy as np
    from mmdet.apis import inference_detector, init_detector
    from PIL import Image

    from cyclemlp_mm.datasets.shapes import CLASSES, PALETTE
    from cyclemlp_mm.visualization import draw_gallery
    from cyclemlp_mm.visualization.boxes import Boxes

    detector = init_detector(
        str(work_dir / f'{CONFIG}.py'), str(_checkpoint(work_dir)), device='cpu'
    )
    content = json.loads((data / 'annotations/instances_val2017.json').read_text())
    entries = content['images'][:NUM_DRAWN]
    files = [data / 'val2017' / entry['file_name'] for entry in entries]
    results = [sample.pred_instances.numpy() for sample in inference_detector(detector, files)]
    return draw_gallery(
        [np.asarray(Image.open(file)) for file in files],
        [Boxes(*_truth(content, entry['id'])) for entry in entries],
        [Boxes(found.bboxes, found.labels, found.scores) for found in results],
        CLASSES,
        PALETTE,
        work_dir / 'predictions.png',
    )


def _truth(content: dict, image_id: int) -> tuple:
    import numpy as np

    label_of = {category['id']: i for i, category in enumerate(content['categories'])}
    mine = [a for a in content['annotations'] if a['image_id'] == image_id]
    xywh = np.array([a['bbox'] for a in mine]).reshape(-1, 4)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return xyxy, np.array([label_of[a['category_id']] for a in mine], dtype=int)


if __name__ == '__main__':
    _parse_args(None)  # --help does not wait for torch
    run_tool(demo)
