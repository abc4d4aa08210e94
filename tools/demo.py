#!/usr/bin/env python
"""Train a detector, one with masks and a segmentor on generated images; draw what they find."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cyclemlp_mm.apis.arguments import Parser
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.errors import UserError

#: By task: config, sub-folders of the work dir for the run and its data, and metric.
TASKS = {
    'boxes': ('retinanet_cyclemlp_demo', '.', 'data', 'coco/bbox_mAP_50'),
    'masks': ('mask_rcnn_cyclemlp_demo', 'masks', 'data', 'coco/segm_mAP_50'),
    'segments': ('fpn_cyclemlp_demo', 'segments', 'data_ade20k', 'mIoU'),
}
NUM_TRAIN, NUM_VAL, SIZE = 340, 60, (128, 128)
EXAMPLES = '  tools/demo.py\n  tools/demo.py --work-dir my_demo\n'
WORK_DIR = dict(default='work_dirs/demo', help='folder for everything (default: %(default)s)')


def _parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return Parser(__doc__, EXAMPLES, {'--work-dir': WORK_DIR}).parse_args(argv)


def demo(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Generate data, train with ``tools/train.py``, evaluate and draw.

    Returns box AP50, mask AP50 and mIoU on the validation images, in 0..1, by task. Raises a
    UserError that names the log if a training fails.
    """
    work_dir = Path(_parse(argv).work_dir)
    # Slow to import, and not needed for --help.
    from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
    from cyclemlp_mm.visualization.curves import draw_curves, evaluations, read_scalars

    work_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    write_coco(work_dir / 'data', NUM_TRAIN, NUM_VAL, SIZE)
    print(f'data       {NUM_TRAIN} + {NUM_VAL} images of shapes in {work_dir / "data"}', flush=True)
    # All at a time, of one thread each: images this small keep no more threads busy.
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(_train, task, work_dir) for task in ('boxes', 'masks')]
        write_ade20k(work_dir / 'data_ade20k', NUM_TRAIN, NUM_VAL, SIZE)  # the same images
        runs.append(pool.submit(_train, 'segments', work_dir))
        for run in runs:
            run.result()
    folders = [work_dir / folder for _, folder, _, _ in TASKS.values()]
    draw_curves(folders, work_dir / 'loss_curve.png')
    _draw(work_dir)
    results = {}
    for (task, (_, _, _, metric)), folder in zip(TASKS.items(), folders, strict=True):
        results[task] = evaluations(read_scalars(folder), metric)[1][-1][1]
        name = dict(boxes='box AP50', masks='mask AP50', segments='mIoU')[task]
        print(
            f'{name:<10} {results[task]:.3f}   {(folder / "last_checkpoint").read_text().strip()}'
        )
    print(f'pictures   {work_dir / "predictions.png"}, {work_dir / "loss_curve.png"}')
    print(f'done in {time.perf_counter() - start:.0f} s; next: make web')
    return results


def _train(task: str, work_dir: Path) -> None:
    """Run ``tools/train.py``, show its results of each epoch, and keep all it prints in a log."""
    config, folder, data, metric = TASKS[task]
    work_dir, data = work_dir / folder, work_dir / data
    work_dir.mkdir(exist_ok=True)
    arguments = [config, '--data', str(data), '--work-dir', str(work_dir)]
    print(f'{task:<10} tools/train.py {shlex.join(arguments)}\n', end='', flush=True)
    command = [sys.executable, str(Path(__file__).with_name('train.py')), *arguments]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    environment = {'OMP_NUM_THREADS': '1', **os.environ}
    log, epoch = work_dir / 'train.log', 0
    with log.open('w') as file, subprocess.Popen(command, env=environment, **pipe) as process:
        for line in process.stdout:
            file.write(line)
            value = re.search(rf'(?:Epoch|Iter)\(val\).*{metric}: ([\d.]+)', line)
            if value:
                epoch += 1
                score = float(value[1]) / (100 if metric == 'mIoU' else 1)
                print(f'{task:<10} epoch {epoch}: {metric} {score:.3f}', flush=True)
    if process.returncode:
        tail = '\n'.join(log.read_text().splitlines()[-15:])
        raise UserError(f'training failed; all it printed is in {log}, at the end:\n{tail}')


def _draw(work_dir: Path) -> None:
    """Draw the two validation images with most objects: what each model finds, side by side."""
    from cyclemlp_mm.inference import Predictor, Segments
    from cyclemlp_mm.visualization.gallery import draw_tasks

    predictors = {}
    for task, (config, folder, _, _) in TASKS.items():
        checkpoint = (work_dir / folder / 'last_checkpoint').read_text().strip()
        predictors[task] = Predictor(work_dir / folder / f'{config}.py', checkpoint, 'cpu')
    detector = predictors['boxes']
    annotations = work_dir / 'data' / 'annotations' / 'instances_val2017.json'
    objects = Counter(one['image_id'] for one in json.loads(annotations.read_text())['annotations'])
    names = [f'{image_id:012d}.jpg' for image_id, _ in objects.most_common(2)]
    images = [detector.read(work_dir / 'data' / 'val2017' / name)[0] for name in names]
    found = {task: predictor.predict(images) for task, predictor in predictors.items()}
    # Without the background, so that a class has the same number, and colour, everywhere.
    found['segments'] = [Segments(one.label_map - np.uint8(1)) for one in found['segments']]
    images = [image[..., ::-1] for image in images]
    look = detector.classes, detector.palette
    draw_tasks(images, found, *look, work_dir / 'predictions.png', score_thr=0.6)


if __name__ == '__main__':
    _parse()  # --help does not wait for torch
    run_tool(demo)
