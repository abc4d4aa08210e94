"""Train on generated images for a while, and watch the memory of every process.

    python tests/soak.py --minutes 30

Workers are started again every epoch. After the first five minutes, each process's memory (the
median of every minute) must stay within 5%: of the training process, and of the largest worker.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from paths import ROOT

from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.engine.hooks.stop import EXIT_STOPPED

SETTLING = 5 * 60  # seconds
ALLOWED = 0.05
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
OPTIONS = ['train_cfg.max_epochs=100000', 'train_cfg.val_interval=5']
OPTIONS += ['train_dataloader.num_workers=2', *(f'{x}.persistent_workers=False' for x in LOADERS)]
COMMAND = [sys.executable, str(ROOT / 'tools' / 'train.py'), 'retinanet_cyclemlp_demo']
COMMAND += ['--data', 'shapes', '--work-dir', 'wd', '--cfg-options', *OPTIONS]


def memory(process):
    """Resident memory of a process in MiB, or None where it has ended."""
    with suppress(psutil.Error):
        return process.memory_info().rss / 2**20


def sample(process):
    """Memory of the training process and of its largest worker, in MiB."""
    children = []
    with suppress(psutil.Error):
        children = process.children()
    workers = [size for child in children if (size := memory(child))]
    return dict(training=memory(process), worker=max(workers, default=None))


def spread(samples, role):
    """How far apart the minutes' medians are, relative to the lowest, and the medians."""
    minutes = {}
    for at, sizes in samples:
        if at >= SETTLING and sizes[role] is not None:
            minutes.setdefault(int(at // 60), []).append(sizes[role])
    medians = [statistics.median(values) for values in minutes.values()]
    if len(medians) < 2:
        raise SystemExit(f'too short: it takes {SETTLING // 60} minutes to settle, and more')
    return (max(medians) - min(medians)) / min(medians), medians


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder) / 'shapes', 200, 20, (128, 128))
        log, env = Path(folder) / 'log', {**os.environ, 'OMP_NUM_THREADS': '1'}
        started, samples = time.monotonic(), []
        with log.open('w') as file:
            streams = dict(stdout=file, stderr=subprocess.STDOUT)
            process = psutil.Popen(COMMAND, cwd=folder, env=env, **streams)
            while process.poll() is None and time.monotonic() - started < 60 * minutes:
                time.sleep(1)
                samples.append((time.monotonic() - started, sample(process)))
            process.send_signal(signal.SIGTERM)
            code = process.wait(300)
        text = log.read_text()
    if code != EXIT_STOPPED:
        raise SystemExit(f'training ended with {code}:\n{text[-3000:]}')
    failed = False
    for role in ('training', 'worker'):
        apart, medians = spread(samples, role)
        failed |= apart > ALLOWED
        figures = f'{medians[0]:.0f} MiB after 5 minutes, {medians[-1]:.0f} MiB at the end'
        print(f'{role:<9} {figures}; minutes are within {100 * apart:.1f}% of each other')
    epochs = text.count('Saving checkpoint at')
    print(f'{minutes:g} minutes, {epochs} epochs (workers started again in each)')
    sys.exit(failed)


if __name__ == '__main__':
    main()
