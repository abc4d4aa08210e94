"""Kill a training at random moments, resume it, and compare the end with an uninterrupted one.

    python tests/prove_resume.py --kills 30 --how KILL
    python tests/prove_resume.py --kills 5 --how TERM --loop iter
    python tests/prove_resume.py --kills 5 --processes 2

A small detector with averaged weights, drop path, augmentation in a worker process, warm-up and a
cosine schedule. Half of the kills come at a random time, the other half while a checkpoint is being
written. After each, every checkpoint of the folder must be readable, and last_checkpoint must name
one. In the end weights, averaged weights, optimiser and schedule must be equal to the bit.

Trainings run in forks of this process, which has everything imported, so that each takes seconds.
"""

import argparse
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.engine.config_files import configs_dir
from cyclemlp_mm.engine.hooks.stop import EXIT_STOPPED
from cyclemlp_mm.engine.work_dir import PARTIAL
from cyclemlp_mm.weights import read_checkpoint

NUM_TRAIN, BATCH, EPOCHS = 24, 2, 3  # 36 iterations in one process
CONFIG = """
_base_ = '{base}'
model = dict(
    backbone=dict(
        arch=dict(depths=(1, 1, 1, 1), widths=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1)),
        drop_path_rate=0.3),
    neck=dict(in_channels=[16, 24, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1))
train_dataloader = dict(
    batch_size={batch}, num_workers=1, persistent_workers=True, sampler=dict(type='{sampler}'))
val_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(_delete_=True, {loop}, val_interval={val_interval})
custom_hooks = [dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)]
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval={interval}, by_epoch={by_epoch}, max_keep_ckpts={keep}))
log_processor = dict(by_epoch={by_epoch})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=36, by_epoch=False, begin=6, end=36)]
randomness = dict(seed={seed}, deterministic=True)
"""
EPOCH = dict(
    loop=f"type='EpochBasedTrainLoop', max_epochs={EPOCHS}",
    sampler='DefaultSampler',
    **dict(by_epoch=True, interval=1, keep=2, val_interval=2),
)
ITER = dict(
    loop=f"type='IterBasedTrainLoop', max_iters={EPOCHS * NUM_TRAIN // BATCH}",
    sampler='InfiniteSampler',
    **dict(by_epoch=False, interval=3, keep=1, val_interval=24),
)
LOOPS = dict(epoch=EPOCH, iter=ITER)
FORK = multiprocessing.get_context('fork')


def run_training(folder, work_dir, log, environment):
    """What a process of a training does."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    with log.open('a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    launcher = ['--launcher', 'pytorch'] if environment else []
    train(['config.py', '--data', 'shapes', '--work-dir', str(work_dir), '--resume', *launcher])


class Run:
    """One training in processes of its own: started, watched, ended."""

    def __init__(self, folder, work_dir, processes):
        self.work_dir, self.log = folder / work_dir, folder / f'{work_dir}.log'
        self.started, port = time.monotonic(), free_port()
        self.processes = []
        for rank in range(processes):
            group = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes)
            group |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
            environment = {k: str(v) for k, v in group.items()} if processes > 1 else {}
            arguments = folder, self.work_dir, self.log, environment
            self.processes.append(FORK.Process(target=run_training, args=arguments))
            self.processes[-1].start()

    def is_running(self):
        return any(process.is_alive() for process in self.processes)

    def is_saving(self):
        """Whether a checkpoint is being written at this moment."""
        return any(self.work_dir.glob(f'{PARTIAL}*.pth'))

    def kill(self):
        """kill -9: all processes, with their workers."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.wait()

    def terminate(self):
        """SIGTERM to each training process, as a cluster sends it."""
        for process in self.processes:
            process.terminate()
        return self.wait()

    def wait(self, seconds=300):
        """Exit codes."""
        for process in self.processes:
            process.join(seconds)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(f'a training hangs; its log: {self.log}')
        return [process.exitcode for process in self.processes]

    def tail(self):
        """The end of the log."""
        return self.log.read_text()[-3000:]


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def checked_checkpoints(work_dir):
    """Raise where a checkpoint of a work dir is broken, or last_checkpoint names a broken one."""
    for path in work_dir.glob('*.pth'):
        if not path.name.startswith(PARTIAL):
            read_checkpoint(path)
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        named = Path(pointer.read_text())
        assert named.is_file(), f'last_checkpoint names {named}, which is not there'
        read_checkpoint(named)


def final_state(work_dir):
    """What training leads to, from its last checkpoint."""
    content = read_checkpoint(Path((work_dir / 'last_checkpoint').read_text()))
    keys = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    return {key: content[key] for key in keys if key in content}


def same(a, b, where=''):
    """Raise where two nested states differ in a single bit; returns how many tensors there are."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f'{where} differs by {(a.double() - b.double()).abs().max():.3g}'
        return 1
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        return sum(same(a[key], b[key], f'{where}.{key}') for key in a)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        return sum(same(x, y, where) for x, y in zip(a, b))
    assert a == b, f'{where}: {a} and {b}'
    return 0


def interrupt(run, how, while_saving, longest):
    """Wait for the moment and end a run.

    Returns:
        str: 'saving', 'elsewhere', or 'over' where the training ended before the moment came.
    """
    moment = run.started + random.uniform(0, longest)
    saves_to_let_pass = random.choice((0, 0, 1))
    while while_saving or time.monotonic() < moment:
        if not run.is_running():
            return 'over'
        if while_saving and run.is_saving():
            if not saves_to_let_pass:
                break
            saves_to_let_pass -= 1
            while run.is_saving() and run.is_running():
                pass
        time.sleep(0.0005)
    if how == 'KILL':
        run.kill()
        return 'saving' if run.is_saving() else 'elsewhere'
    codes = run.terminate()
    # Before the handlers are in place, SIGTERM ends a process as ever.
    allowed = ({EXIT_STOPPED}, {-signal.SIGTERM}, {0})
    assert set(codes) in allowed, f'{codes}\n{run.tail()}'
    return 'over' if codes == [0] else 'elsewhere'


def prove(folder, kills, how, loop, processes, seed):
    """Run it all; returns a line with the counts."""
    random.seed(seed)
    write_coco(folder / 'shapes', NUM_TRAIN, 4, (64, 64))
    settings = dict(LOOPS[loop], base=configs_dir() / 'retinanet_cyclemlp_demo.py', seed=seed)
    (folder / 'config.py').write_text(CONFIG.format(**settings, batch=BATCH // processes))
    reference = Run(folder, 'reference', processes)
    assert set(reference.wait()) == {0}, reference.tail()
    longest = time.monotonic() - reference.started
    expected = final_state(reference.work_dir)
    print(f'uninterrupted: {longest:.1f} s', flush=True)
    counts = dict(saving=0, elsewhere=0)
    trainings = resumes = tensors = 0
    while sum(counts.values()) < kills:
        trainings += 1
        name = f'training{trainings}'
        while True:
            run = Run(folder, name, processes)
            if sum(counts.values()) >= kills:
                assert set(run.wait()) == {0}, run.tail()
                outcome = 'over'
            else:
                while_saving = how == 'KILL' and sum(counts.values()) % 2 == 1
                outcome = interrupt(run, how, while_saving, longest)
            if outcome == 'over':
                assert set(run.wait()) == {0}, run.tail()
                break
            counts[outcome] += 1
            resumes += 1
            checked_checkpoints(run.work_dir)
            print(f'{how} {sum(counts.values())}: {outcome}', flush=True)
        tensors = same(expected, final_state(run.work_dir))
        assert not run.is_saving(), 'a half-written file was left behind'
        print(f'training {trainings} ends equal to the bit: {tensors} tensors', flush=True)
    return (
        f'{sum(counts.values())} x {how}, {counts["saving"]} of them while a checkpoint was being '
        f'written; {resumes} resumes over {trainings} trainings ({loop}-based, {processes} '
        f'process{"es" if processes > 1 else ""}): no broken file, and all {tensors} tensors of '
        'weights, averaged weights and optimiser equal to the bit'
    )


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--how', choices=('KILL', 'TERM'), default='KILL')
    parser.add_argument('--loop', choices=sorted(LOOPS), default='epoch')
    parser.add_argument('--processes', type=int, choices=(1, 2), default=1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', help='keep everything here (default: a temporary folder)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
        arguments = (args.kills, args.how, args.loop, args.processes, args.seed)
        print(prove(Path(folder).resolve(), *arguments))


if __name__ == '__main__':
    main()
