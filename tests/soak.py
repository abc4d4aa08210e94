"""Train on generated images for a while, and watch the memory of every process.

    python tests/soak.py --minutes 30

Workers are started again every epoch. After the first five minutes, each process's memory (the
median of every minute) must stay within 5%: of the training process, and of the largest worker.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from paths import ROOT

from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.engine.hooks.stop import EXIT_STOPPED

SETTLING = 5  # minutes
ALLOWED = 0.05
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
OPTIONS = ['train_cfg.max_epochs=100000', 'train_cfg.val_interval=5']
OPTIONS += ['train_dataloader.num_workers=2', *(f'{x}.persistent_workers=False' for x in LOADERS)]
COMMAND = [sys.executable, str(ROOT / 'tools' / 'train.py'), 'retinanet_cyclemlp_demo']
COMMAND += ['--data', 'shapes', '--work-dir', 'wd', '--cfg-options', *OPTIONS]


def memory(process):
    """MiB of the training process and of its largest worker; nan where there is none."""
    sizes = []
    with suppress(psutil.Error):  # it ended a moment ago
        for one in (process, *process.children()):
            sizes.append(one.memory_info().rss / 2**20)
    return sizes[0] if sizes else np.nan, max(sizes[1:], default=np.nan)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30)
    minutes = parser.parse_args().minutes
    by_minute = {}
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder) / 'shapes', 200, 20, (128, 128))
        log, env = Path(folder) / 'log', {**os.environ, 'OMP_NUM_THREADS': '1'}
        started = time.monotonic()
        with log.open('w') as file:
            streams = dict(stdout=file, stderr=subprocess.STDOUT)
            process = psutil.Popen(COMMAND, cwd=folder, env=env, **streams)
            while process.poll() is None and time.monotonic() - started < 60 * minutes:
                time.sleep(1)
                minute = int((time.monotonic() - started) // 60)
                by_minute.setdefault(minute, []).append(memory(process))
            process.send_signal(signal.SIGTERM)
            code = process.wait(300)
        text = log.read_text()
    if code != EXIT_STOPPED:
        raise SystemExit(f'training ended with {code}:\n{text[-3000:]}')
    medians = [np.nanmedian(sizes, axis=0) for at, sizes in by_minute.items() if at >= SETTLING]
    if len(medians) < 2:
        raise SystemExit(f'too short: it takes {SETTLING} minutes to settle, and more')
    apart = np.ptp(medians, axis=0) / np.min(medians, axis=0)
    for role, first, last, part in zip(('training', 'worker'), medians[0], medians[-1], apart):
        figures = f'{first:.0f} MiB after {SETTLING} minutes, {last:.0f} MiB at the end'
        print(f'{role:<9} {figures}; minutes are within {100 * part:.1f}% of each other')
    epochs = text.count('Saving checkpoint at')
    print(f'{minutes:g} minutes, {epochs} epochs (workers started again in each)')
    sys.exit(bool(max(apart) > ALLOWED))


if __name__ == '__main__':
    main()
