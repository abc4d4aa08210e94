"""Which checkpoint --resume auto takes, and that a resumed training ends as an unbroken one."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from mmengine.config import Config
from paths import ROOT
from toy_runs import run_tool

from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.engine import resume_training
from cyclemlp_mm.engine.runner.resume import find_newest
from cyclemlp_mm.engine.work_dir import (
    LOCK,
    PARTIAL,
    remove_partial_files,
    work_dir_lock,
    write_atomically,
)
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.weights import read_checkpoint

HUB = {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}


def save(folder, name, age=0, seed=3, broken=False, **meta):
    """Write a checkpoint as training does, ``age`` seconds ago."""
    path = folder / name
    numbers = [int(number) for number in re.findall(r'\d+', name)]
    meta = dict(epoch=numbers[0], iter=numbers[-1], seed=seed) | meta
    content = dict(meta=meta, state_dict={'w': torch.ones(1)}, message_hub=HUB, optimizer={})
    torch.save(content, path)
    if broken:
        path.write_bytes(path.read_bytes()[:-30])
    touch(path, age)
    return path


def touch(path, age):
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))


def point(folder, name, age=0):
    (folder / 'last_checkpoint').write_text(f'/elsewhere/{name}')
    touch(folder / 'last_checkpoint', age)


def test_an_earlier_training_in_the_same_folder(tmp_path):
    """It got further than the one that last_checkpoint names; the dates are those of a copy."""
    save(tmp_path, 'epoch_2.pth', age=10, time='20261102_100000')
    save(tmp_path, 'epoch_12.pth', age=9, time='20261101_235959')
    save(tmp_path, 'best_coco_epoch_3.pth', age=0)
    point(tmp_path, 'epoch_2.pth', age=5)
    found = find_newest(tmp_path)
    assert found.path.name == 'epoch_2.pth' and not found.notes


@pytest.mark.parametrize('time', [{}, dict(time='20261102_100000')])
def test_a_checkpoint_that_was_complete_but_not_yet_named(tmp_path, time):
    """Also where a copy has mixed the dates up."""
    save(tmp_path, 'epoch_2.pth', age=1, **time)
    save(tmp_path, 'epoch_3.pth', age=10, **time)
    point(tmp_path, 'epoch_2.pth', age=0)
    assert find_newest(tmp_path).path.name == 'epoch_3.pth'


def test_one_in_the_middle_of_an_epoch(tmp_path):
    save(tmp_path, 'epoch_2.pth', age=2, iter=8)
    save(tmp_path, 'epoch_2_iter_9.pth', age=10)
    point(tmp_path, 'epoch_2_iter_9.pth', age=1)
    assert find_newest(tmp_path).path.name == 'epoch_2_iter_9.pth'


def test_a_broken_one_is_passed_over_and_said(tmp_path):
    save(tmp_path, 'epoch_9.pth', age=30)
    save(tmp_path, 'epoch_10.pth', age=30)
    save(tmp_path, 'epoch_11.pth', broken=True)
    point(tmp_path, 'epoch_11.pth')
    cfg = Config(dict(work_dir=str(tmp_path)))
    said = '\n'.join(resume_training(cfg, 'auto'))
    assert re.search(r'passed over a broken checkpoint: .*epoch_11\.pth cannot be read', said)
    assert cfg.load_from.endswith('epoch_10.pth') and cfg.resume


@pytest.mark.parametrize(
    'pointer',
    [
        None,
        b'',
        b'\0' * 5000,
        b'\xef\xbb\xbfiter_20.pth\r\n',
        b'best_mIoU_iter_120.pth',
        b'/elsewhere/iter_300.pth',
        b'elsewhere/iter_300.pth',
        b'C:\\runs\\iter_20.pth',
        b'..',
        'iter_20.pth'.encode('utf-16'),
        b'~nobody/iter_20.pth',
        b'a\0b',
        b'x' * 9999,
    ],
    ids=lambda pointer: repr(pointer)[:30],
)
@pytest.mark.parametrize('template', ['iter_{}.pth', 'run-{:06d}.pth', '{}_of_my_runs.pth'])
def test_a_spoiled_pointer_is_a_hint_at_most(tmp_path, monkeypatch, pointer, template):
    """What the files hold counts; the dates are as a copy leaves them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'elsewhere').mkdir()
    save(tmp_path / 'elsewhere', 'iter_300.pth')
    save(tmp_path, template.format(20), age=2, iter=20)
    save(tmp_path, template.format(100), age=20, iter=100)
    save(tmp_path, 'best_mIoU_iter_120.pth')
    torch.save(dict(meta=dict(epoch=0, iter=500), state_dict={}), tmp_path / 'published.pth')
    if pointer is not None:
        (tmp_path / 'last_checkpoint').write_bytes(pointer)
    assert find_newest(tmp_path).path.name == template.format(100)
    cfg = Config(dict(work_dir=str(tmp_path)))
    said = '\n'.join(resume_training(cfg, 'auto'))
    assert cfg.load_from == str(tmp_path / template.format(100))
    if pointer is not None and b'iter_20' not in pointer:
        assert 'last_checkpoint names no checkpoint of' in said


@pytest.mark.parametrize('name', ['epoch_2.pth', 'last_checkpoint'])
@pytest.mark.parametrize('kind', ['folder', 'pipe', 'dangling link'])
def test_what_is_no_file_is_no_checkpoint(tmp_path, name, kind):
    """Nor a pointer to one; a pipe would hang."""
    save(tmp_path, 'epoch_1.pth')
    make = dict(folder=os.mkdir, pipe=os.mkfifo).get(kind, lambda path: path.symlink_to('/none'))
    make(tmp_path / name)
    found = find_newest(tmp_path)
    assert found.path.name == 'epoch_1.pth'
    assert name == 'last_checkpoint' or name in ''.join(found.notes)


@pytest.mark.parametrize('part', ['seed', 'iter', 'experiment_name'])
def test_a_number_that_python_cannot_write_is_refused(tmp_path, part):
    """10**5000 in a message is a ValueError."""
    path = save(tmp_path, 'epoch_1.pth', **{part: -(10**5000)})
    with pytest.raises(CheckpointError, match='whole number of thousands of digits'):
        resume_training(Config(dict(work_dir=str(tmp_path))), str(path))


def test_the_file_is_asked_not_its_name(tmp_path):
    """Also one of the old format, which is no zip file, and one written with another protocol."""
    save(tmp_path, 'epoch_9.pth', iter=90)
    content = torch.load(save(tmp_path, 'epoch_1.pth'), weights_only=False)
    for name, iteration, options in (
        ('epoch_4.pth', 70000, dict(pickle_protocol=4)),
        ('epoch_3.pth', 300, dict(_use_new_zipfile_serialization=False)),
    ):
        content['meta'].update(iter=iteration)
        torch.save(content, tmp_path / name, **options)
        if iteration == 300:
            assert find_newest(tmp_path).path.name == 'epoch_4.pth'
            (tmp_path / 'epoch_4.pth').unlink()
    assert find_newest(tmp_path).path.name == 'epoch_3.pth'


def test_how_far_a_checkpoint_is_follows_from_its_meta_alone(tmp_path):
    """Other parts may have keys of the same names; tensors are not read."""
    save(tmp_path, 'epoch_1.pth', iter=10)
    content = torch.load(save(tmp_path, 'epoch_2.pth', iter=5), weights_only=False)
    torch.save(
        dict(dict(param_schedulers=[dict(iter=70, epoch=70)]), **content), tmp_path / 'epoch_2.pth'
    )
    assert find_newest(tmp_path).path.name == 'epoch_1.pth'
    large = dict(content, state_dict={'w': torch.ones(3_000_000)})
    large['meta'].update(iter=20)
    torch.save(large, tmp_path / 'epoch_3.pth')
    parts = read_checkpoint(tmp_path / 'epoch_3.pth', tensors=False)
    assert parts['meta'] == large['meta'] and not parts['state_dict']['w'].any()
    found = find_newest(tmp_path)
    assert found.path.name == 'epoch_3.pth' and found.content['state_dict']['w'].all()


def test_checkpoints_of_an_out_dir(tmp_path):
    (tmp_path / 'big' / 'run').mkdir(parents=True)
    save(tmp_path / 'big' / 'run', 'epoch_1.pth')
    hook = dict(type='AtomicCheckpointHook', out_dir=str(tmp_path / 'big'))
    cfg = Config(dict(work_dir=str(tmp_path / 'run'), default_hooks=dict(checkpoint=hook)))
    resume_training(cfg, 'auto')
    assert cfg.load_from == str(tmp_path / 'big' / 'run' / 'epoch_1.pth')
    cfg.default_hooks.checkpoint.out_dir = 's3://bucket'
    with pytest.raises(UserError, match=r'cannot look into s3://bucket .*--resume FILE'):
        resume_training(cfg, 'auto')


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_a_seed_that_is_none(tmp_path, seed):
    path = save(tmp_path, 'epoch_1.pth', seed=seed)
    with pytest.raises(CheckpointError, match=rf'meta\.seed is {seed}'):
        resume_training(Config(dict(work_dir=str(tmp_path))), str(path))


def test_nothing_yet_is_a_start_and_only_broken_ones_are_an_error(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    assert 'no checkpoint yet' in resume_training(cfg, 'auto')[0]
    assert 'load_from' not in cfg and 'resume' not in cfg
    save(tmp_path, 'epoch_1.pth', broken=True)
    with pytest.raises(CheckpointError, match=r'none of the 1 checkpoints.*--work-dir'):
        resume_training(cfg, 'auto')


def test_a_flipped_bit_is_seen(tmp_path):
    path = save(tmp_path, 'epoch_1.pth')
    content = bytearray(path.read_bytes())
    at = content.index(torch.ones(1).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'epoch_1\.pth.*(damaged|CRC)'):
        find_newest(tmp_path)


@pytest.mark.parametrize('asked, said', [(None, False), (3, False), (5, True)])
def test_the_seed_goes_on(tmp_path, asked, said):
    save(tmp_path, 'epoch_1.pth', seed=3)
    cfg = Config(dict(work_dir=str(tmp_path), randomness=dict(seed=asked, deterministic=True)))
    lines = '\n'.join(resume_training(cfg, 'auto'))
    assert cfg.randomness == dict(seed=3, deterministic=True)
    assert ('not with 5' in lines) == said


def test_a_file_is_whole_or_as_before(tmp_path, monkeypatch):
    path = tmp_path / 'a' / 'file'
    write_atomically(b'old', path)

    def fail(*args):
        raise OSError(28, 'No space left on device')

    for step in ('fsync', 'replace'):
        with monkeypatch.context() as patch, pytest.raises(OSError, match='No space'):
            patch.setattr(os, step, fail)
            write_atomically(b'new', path)
        assert path.read_bytes() == b'old'
        assert list(path.parent.iterdir()) == [path]  # nothing beside it
    ended = subprocess.Popen(['true'])
    ended.wait()
    names = [f'{PARTIAL}{number}-file' for number in (ended.pid, os.getpid())]
    for name in [*names, f'{PARTIAL}{os.getppid()}-file']:  # the last one's process is alive
        (path.parent / name).write_bytes(b'ne')
    assert sorted(remove_partial_files(path.parent)) == sorted(names)


@contextmanager
def training_elsewhere(work_dir):
    """A process that has the lock, with a worker that outlives it by a while; yields its pid."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        with work_dir_lock(work_dir):
            if not os.fork():
                time.sleep(5)
                os._exit(0)
            os.write(write, b'.')
            time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)


def test_a_work_dir_is_for_one_training(tmp_path):
    with training_elsewhere(tmp_path / 'wd') as pid:
        said = rf'another training writes into .*wd \(process {pid} on .*since 20.*--work-dir'
        for _ in range(2):
            with pytest.raises(UserError, match=said), work_dir_lock(tmp_path / 'wd'):
                pass
        with work_dir_lock(tmp_path / 'other'):
            pass
    # Killed: at once, with the file still there, and a worker still alive.
    assert (tmp_path / 'wd' / LOCK).is_file()
    with work_dir_lock(tmp_path / 'wd'):
        pass
    assert list((tmp_path / 'wd').iterdir()) == []


@pytest.mark.parametrize('kind', ['link', 'link to nothing', 'folder', 'pipe', 'hard link'])
def test_a_lock_that_is_no_file_of_the_training(tmp_path, kind):
    precious = tmp_path / 'precious'
    precious.write_text('precious')
    lock = tmp_path / 'wd' / LOCK
    lock.parent.mkdir()
    if kind == 'hard link':
        lock.hardlink_to(precious)
    elif kind.startswith('link'):
        lock.symlink_to(precious if kind == 'link' else tmp_path / 'new')
    else:
        (os.mkdir if kind == 'folder' else os.mkfifo)(lock)
    message = rf'{LOCK} is a link, a folder or a pipe.*remove it, or take another --work-dir'
    with pytest.raises(UserError, match=message), work_dir_lock(lock.parent):
        pass
    assert precious.read_text() == 'precious' and not (tmp_path / 'new').exists()
    assert os.path.lexists(lock)


def test_a_training_in_the_work_dir_of_another_one(tmp_path):
    write_coco(tmp_path / 'shapes', 4, 2, (64, 64))
    argv = ['--data', 'shapes', '--work-dir', 'wd', '--skip-check']
    with training_elsewhere(tmp_path / 'wd'):
        code, printed = run_tool(
            'train.py', 'retinanet_cyclemlp_demo', *argv, cwd=tmp_path, check=False
        )
    assert code == 2 and 'error: another training writes into' in printed
    assert [path.name for path in (tmp_path / 'wd').iterdir()] == [LOCK]


def test_a_folder_that_cannot_be_locked_is_left_to_the_training(tmp_path):
    (tmp_path / 'file').write_text('')
    with work_dir_lock(tmp_path / 'file' / 'wd'):
        pass


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    'arguments',
    [
        ['--how', 'KILL', '--kills', '1'],
        pytest.param(['--how', 'KILL', '--kills', '3'], marks=pytest.mark.slow),
        pytest.param(['--how', 'TERM', '--kills', '2', '--loop', 'iter'], marks=pytest.mark.slow),
    ],
)
def test_equal_to_the_bit(arguments):
    """A few; `make prove-resume` does many."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests' / 'prove_resume.py'), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert 'equal to the bit' in done.stdout.splitlines()[-1]
    print(done.stdout.splitlines()[-1])
