"""Train on generated images for a while, and watch the memory of every process.

    python tests/soak.py --minutes 30

Workers are started again every epoch. After the first five minutes, each process's memory (the
median of every minute) must stay within 5%: of the training process, and of the largest worker.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paths import ROOT

from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.engine.hooks.stop import EXIT_STOPPED

SETTLING = 5 * 60  # seconds
ALLOWED = 0.05


def resident(pid):
    """Resident memory of a process in MiB, or None where it has ended."""
    try:
        found = re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def children(pid):
    """Processes that a process started."""
    try:
        return [int(p) for p in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []


def sample(pid):
    """Memory of the training process and of its largest worker, in MiB."""
    workers = [size for child in children(pid) if (size := resident(child))]
    return dict(training=resident(pid), worker=max(workers, default=None))


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
        log = Path(folder) / 'log'
        options = ['train_cfg.max_epochs=100000', 'train_cfg.val_interval=5']
        options.append('train_dataloader.num_workers=2')
        loaders = ('train', 'val', 'test')
        options += [f'{name}_dataloader.persistent_workers=False' for name in loaders]
        command = [sys.executable, str(ROOT / 'tools' / 'train.py'), 'retinanet_cyclemlp_demo']
        command += ['--data', 'shapes', '--work-dir', 'wd', '--cfg-options', *options]
        started, samples = time.monotonic(), []
        with log.open('w') as file:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'OMP_NUM_THREADS': '1'},
            )
            while process.poll() is None and time.monotonic() - started < 60 * minutes:
                time.sleep(1)
                samples.append((time.monotonic() - started, sample(process.pid)))
            process.send_signal(signal.SIGTERM)
            code = process.wait(300)
        text = log.read_text()
        if code != EXIT_STOPPED:
            raise SystemExit(f'training ended with {code}:\n{text[-3000:]}')
        epochs = text.count('Saving checkpoint at')
        failed = False
        for role in ('training', 'worker'):
            apart, medians = spread(samples, role)
            failed |= apart > ALLOWED
            print(
                f'{role:<9} {medians[0]:.0f} MiB after 5 minutes, {medians[-1]:.0f} MiB at the '
                f'end; minutes are within {100 * apart:.1f}% of each other'
            )
        print(f'{minutes:g} minutes, {epochs} epochs (workers started again in each)')
        sys.exit(failed)


if __name__ == '__main__':
    main()
