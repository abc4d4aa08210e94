"""Which checkpoint --resume auto takes, and that a resumed training ends as an unbroken one."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from paths import ROOT

from cyclemlp_mm.apis.train import train
from cyclemlp_mm.engine import resume_training
from cyclemlp_mm.engine.runner import loops
from cyclemlp_mm.engine.runner.resume import compare_settings, find_newest
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


def save(folder, name, seed=3, broken=False, **meta):
    """Write a checkpoint as training does; all are of one date, as in a copy."""
    path = folder / name
    numbers = [int(number) for number in re.findall(r'\d+', name)]
    meta = dict(epoch=numbers[0], iter=numbers[-1], seed=seed) | meta
    content = dict(meta=meta, state_dict={'w': torch.ones(1)}, message_hub=HUB, optimizer={})
    torch.save(content, path)
    if broken:
        path.write_bytes(path.read_bytes()[:-30])
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def resume(folder, source='auto', **settings):
    """The config of a resumed training, and what the user is told."""
    cfg = Config(dict(work_dir=str(folder), **settings))
    return cfg, '\n'.join(resume_training(cfg, str(source)))


OLD, NEW = dict(time='20261101_235959'), dict(time='20261102_100000')


@pytest.mark.parametrize(
    'files, pointer, expected',
    [
        # An earlier training in the same folder got further than the one that is named.
        ({'epoch_2': NEW, 'epoch_12': OLD, 'best_coco_epoch_3': {}}, 'epoch_2', 'epoch_2'),
        # The last one was complete, but not yet named.
        ({'epoch_2': {}, 'epoch_3': {}}, 'epoch_2', 'epoch_3'),
        ({'epoch_2': NEW, 'epoch_3': NEW}, 'epoch_2', 'epoch_3'),
        # In the middle of an epoch.
        ({'epoch_2': dict(iter=8), 'epoch_2_iter_9': {}}, 'epoch_2_iter_9', 'epoch_2_iter_9'),
        # The file is asked, not its name.
        ({'epoch_9': dict(iter=90), 'epoch_4': dict(iter=300)}, None, 'epoch_4'),
    ],
)
def test_the_checkpoint_that_is_furthest(tmp_path, files, pointer, expected):
    for name, meta in files.items():
        save(tmp_path, f'{name}.pth', **meta)
    if pointer:
        (tmp_path / 'last_checkpoint').write_text(f'/elsewhere/{pointer}.pth')
    found = find_newest(tmp_path)
    assert found.path.name == f'{expected}.pth' and not found.notes


def test_a_broken_one_is_passed_over_and_reported(tmp_path):
    for name in ('epoch_9.pth', 'epoch_10.pth'):
        save(tmp_path, name)
    save(tmp_path, 'epoch_11.pth', broken=True)
    (tmp_path / 'last_checkpoint').write_text('epoch_11.pth')
    cfg, said = resume(tmp_path)
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
        b'elsewhere/iter_300.pth',
        b'C:\\runs\\iter_20.pth',
        b'..',
        'iter_20.pth'.encode('utf-16'),
        b'~nobody/iter_20.pth',
        b'a\0b',
    ],
    ids=lambda pointer: repr(pointer)[:30],
)
def test_a_spoiled_pointer_is_a_hint_at_most(tmp_path, monkeypatch, pointer):
    """What the files hold counts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'elsewhere').mkdir()
    save(tmp_path / 'elsewhere', 'iter_300.pth')
    for iteration in (20, 100):
        save(tmp_path, f'iter_{iteration}.pth', iter=iteration)
    save(tmp_path, 'best_mIoU_iter_120.pth')
    torch.save(dict(meta=dict(epoch=0, iter=500), state_dict={}), tmp_path / 'published.pth')
    if pointer is not None:
        (tmp_path / 'last_checkpoint').write_bytes(pointer)
    cfg, said = resume(tmp_path)
    assert cfg.load_from == str(tmp_path / 'iter_100.pth')
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


@pytest.mark.parametrize(
    'meta, said',
    [
        (dict(seed=-1), r'meta\.seed is -1'),
        (dict(seed=2**32), r'meta\.seed is 4294967296'),
        # 10**5000 in a message is a ValueError.
        (dict(seed=-(10**5000)), 'whole number of thousands of digits'),
        (dict(iter=-(10**5000)), 'whole number of thousands of digits'),
    ],
)
def test_numbers_that_cannot_be(tmp_path, meta, said):
    path = save(tmp_path, 'epoch_1.pth', **meta)
    with pytest.raises(CheckpointError, match=said):
        resume(tmp_path, path)


def test_how_far_a_checkpoint_is_follows_from_its_meta_alone(tmp_path):
    """In every format of torch; tensors are read from the one that is taken only."""
    save(tmp_path, 'epoch_1.pth', iter=10)
    content = torch.load(save(tmp_path, 'epoch_2.pth', iter=5), weights_only=False)
    content = dict(param_schedulers=[dict(iter=70, epoch=70)], **content)
    torch.save(content, tmp_path / 'epoch_2.pth')
    assert find_newest(tmp_path).path.name == 'epoch_1.pth'
    content['state_dict'] = {'w': torch.ones(3_000_000)}
    for iteration, options in (
        (20, {}),
        (300, dict(_use_new_zipfile_serialization=False)),
        (70000, dict(pickle_protocol=4)),
    ):
        content['meta'].update(iter=iteration)
        file = tmp_path / f'epoch_{iteration}.pth'
        torch.save(content, file, **options)
        parts = read_checkpoint(file, tensors=False)
        assert parts['meta'] == content['meta']
        assert iteration == 300 or not parts['state_dict']['w'].any()
        found = find_newest(tmp_path)
        assert found.path == file and found.content['state_dict']['w'].all()


def test_checkpoints_of_an_out_dir(tmp_path):
    (tmp_path / 'big' / 'run').mkdir(parents=True)
    expected = save(tmp_path / 'big' / 'run', 'epoch_1.pth')
    for out_dir in (str(tmp_path / 'big'), 's3://bucket'):
        hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', out_dir=out_dir))
        if '://' not in out_dir:
            cfg, _ = resume(tmp_path / 'run', default_hooks=hooks)
            assert cfg.load_from == str(expected)
            continue
        with pytest.raises(UserError, match=r'cannot look into s3://bucket .*--resume FILE'):
            resume(tmp_path / 'run', default_hooks=hooks)


def test_nothing_yet_is_a_start_and_only_broken_ones_are_an_error(tmp_path):
    cfg, said = resume(tmp_path)
    assert 'no checkpoint yet' in said and 'load_from' not in cfg and 'resume' not in cfg
    save(tmp_path, 'epoch_1.pth', broken=True)
    with pytest.raises(CheckpointError, match=r'none of the 1 checkpoints.*--work-dir'):
        resume(tmp_path)
    path = save(tmp_path, 'epoch_1.pth')
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(1).numpy().tobytes())] ^= 1  # a flipped bit
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'epoch_1\.pth.*(damaged|CRC)'):
        resume(tmp_path)


@pytest.mark.parametrize('asked, said', [(None, False), (3, False), (5, True)])
def test_the_seed_goes_on(tmp_path, asked, said):
    save(tmp_path, 'epoch_1.pth', seed=3)
    cfg, lines = resume(tmp_path, randomness=dict(seed=asked, deterministic=True))
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
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_work_dir_is_for_one_training(tmp_path):
    work_dir = tmp_path / 'wd'
    argv = ['retinanet_cyclemlp_demo', '--work-dir', str(work_dir), '--skip-check']
    with training_elsewhere(work_dir) as pid:
        said = rf'another training writes into .*wd \(process {pid} on .*since 20.*--work-dir'
        with pytest.raises(UserError, match=said), work_dir_lock(work_dir):
            pass
        with pytest.raises(UserError, match=said):
            train(argv)
        assert [path.name for path in work_dir.iterdir()] == [LOCK]
        with work_dir_lock(tmp_path / 'other'):
            pass
    # Killed: at once, with the file still there, and a worker still alive.
    assert (work_dir / LOCK).is_file()
    with work_dir_lock(work_dir):
        pass
    assert list(work_dir.iterdir()) == []
    (tmp_path / 'file').write_text('')
    with work_dir_lock(tmp_path / 'file' / 'wd'):  # the training itself reports it
        pass


def test_the_lock_of_filelock_3(tmp_path, monkeypatch):
    """It has no argument for the fallback, and another error where there are no locks."""

    class Lock:
        is_locked = False

        def __init__(self, path, timeout):
            pass

        def acquire(self):
            raise NotImplementedError

    monkeypatch.setattr('cyclemlp_mm.engine.work_dir.FileLock', Lock)
    with work_dir_lock(tmp_path / 'wd'):
        assert (tmp_path / 'wd').is_dir()


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


@pytest.mark.slow
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


def test_another_number_of_processes_is_reported(monkeypatch):
    """The number of batches of a sampler without end does not depend on it."""
    lines, infos = [], {}
    hub = SimpleNamespace(get_info=infos.get, update_info=infos.__setitem__)
    logger = SimpleNamespace(warning=lines.append)
    loop = object.__new__(loops.ResumableIterLoop)
    loop._runner = SimpleNamespace(message_hub=hub, logger=logger)
    loop.dataloader = torch.utils.data.DataLoader(range(12), batch_size=4)
    loop._note_length()
    assert lines == [] and infos == dict(images_per_iteration=4, epoch_length=3)
    monkeypatch.setattr(loops, 'get_world_size', lambda: 2)
    loop._note_length()
    assert len(lines) == 1 and 'took 4 images, now it takes 8' in lines[0]
    loop.dataloader = torch.utils.data.DataLoader(range(6), batch_size=4)
    loop._note_length()
    assert 'had 3 batches in an epoch' in lines[1] and len(lines) == 2


def test_settings_of_several_optimisers_are_compared():
    def wrapper(lr):
        parts = {name: torch.nn.Linear(2, 2).parameters() for name in 'ab'}
        kinds = {name: torch.optim.SGD(part, lr=lr) for name, part in parts.items()}
        return OptimWrapperDict(**{name: OptimWrapper(kind) for name, kind in kinds.items()})

    lines = []
    logger = SimpleNamespace(warning=lines.append)
    runner = SimpleNamespace(optim_wrapper=wrapper(0.2), param_schedulers=None, logger=logger)
    runner.hooks = []
    checkpoint = dict(optimizer=wrapper(0.1).state_dict())
    compare_settings(runner, checkpoint, 'x.pth')
    assert len(lines) == 1 and 'lr 0.1 (config: 0.2)' in lines[0]
    checkpoint['ema_state_dict'] = {}  # state_dict is the average then
    with pytest.raises(CheckpointError, match=r'x\.pth has averaged weights.* no EMAHook: add it'):
        compare_settings(runner, checkpoint, 'x.pth')
    runner.hooks = [EMAHook()]
    compare_settings(runner, checkpoint, 'x.pth')
