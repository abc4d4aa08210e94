"""Files that run code, lie or are damaged: refused by name, in little time."""

import io
import json
import pickle
import pkgutil
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import (
    ENDLESS,
    PROTO,
    STOP,
    Hostile,
    array_places,
    call,
    colliding_keys,
    damaged,
    endless,
    entry,
    hiding_places,
    legacy,
    lying_legacy_files,
    lying_pickles,
    lying_safetensors,
    lying_zips,
    text,
    torch_zip,
)
from hostile_files import name as dotted
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_with_prefix
from published_names import published_state_dict
from toy_runs import run_tool

import cyclemlp_mm.safe_loading  # noqa: F401
from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.engine import load_config, use_own_data
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights import read_checkpoint, unsafe_loading
from cyclemlp_mm.weights.convert import convert

TINY = dict(
    depths=(1, 2, 1, 1),
    widths=(8, 12, 16, 20),
    mlp_ratios=(2, 2, 1, 1),
    reweight=True,
    downsample='conv',
)
FORMS = ['zip', 'legacy', 'pickle', 'paddle']


def write(path, content, form):
    """``content`` as a file that PyTorch, Paddle or Python itself would write."""
    if form == 'paddle':
        content = {'w': np.ones(3, np.float32), 'hidden': content}
    if form in ('pickle', 'paddle'):
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == 'zip')
    return path


def init_backbone(path):
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    CycleMLP(TINY, init_cfg=init_cfg).init_weights()


READERS = {
    'read_checkpoint': read_checkpoint,
    'init_cfg': init_backbone,
    'mmengine': lambda path: CheckpointLoader.load_checkpoint(str(path)),
    'mmengine with a prefix': lambda path: _load_checkpoint_with_prefix('backbone', str(path)),
    'convert': lambda path: convert(path, path.with_name('converted.pth')),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('place', sorted(hiding_places('x')))
def test_code_is_not_run_wherever_it_hides(form, place, tmp_path):
    mark = tmp_path / 'was_run'
    path = write(tmp_path / 'evil.pth', hiding_places(mark)[place], form)
    for read in READERS.values():
        with pytest.raises(CheckpointError, match=r'evil\.pth is refused: it holds '):
            read(path)
    assert not mark.exists()
    (tmp_path / 'again').mkdir()
    other = write(tmp_path / 'again' / 'evil.pdparams', hiding_places(mark)[place], form)
    with pytest.raises(CheckpointError, match=r'evil\.pdparams is refused'):
        read_checkpoint(other)
    assert not mark.exists()


@pytest.mark.parametrize('form', FORMS)
def test_the_file_is_hostile_and_the_way_round_warns(form, tmp_path):
    mark = tmp_path / 'was_run'
    path = write(tmp_path / 'evil.pth', {'x': Hostile(mark)}, form)
    with pytest.warns(UserWarning, match=r'evil\.pth is unpickled although'), unsafe_loading():
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert form == 'paddle' and 'entry hidden is no array' in str(error)
    assert mark.exists()
    with pytest.raises(CheckpointError, match='is refused'):  # it ends with the block
        read_checkpoint(path)


def test_unsafe_loading_of_a_harmless_file_is_safe_loading(tmp_path, recwarn):
    torch.save({'a': torch.ones(2)}, tmp_path / 'a.pth')
    with unsafe_loading():
        assert torch.equal(read_checkpoint(tmp_path / 'a.pth')['a'], torch.ones(2))
    assert not [w for w in recwarn if 'although' in str(w.message)]


# The tools and the inference APIs, as processes of their own


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder with data, a detector's config, and a training checkpoint of it."""
    folder = tmp_path_factory.mktemp('run')
    data = write_coco(folder / 'shapes', 2, 1, (64, 64))
    cfg = use_own_data(load_config('retinanet_cyclemlp_demo'), data)
    cfg.model.backbone.arch.update(depths=(1, 1, 1, 1), widths=(8, 64, 128, 192))
    cfg.train_cfg.update(max_epochs=1, val_interval=5)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.dump(folder / 'config.py')
    run_tool('train.py', 'config.py', '--work-dir', 'wd', cwd=folder)
    return folder


@pytest.fixture(scope='module')
def evil(run):
    """Training checkpoints, complete but for something hostile in one place; and the mark."""
    mark = run / 'was_run'
    good = torch.load(run / 'wd' / 'epoch_1.pth', weights_only=False)
    code = f'import os\nos.mkdir({str(mark)!r})\n'
    files = {
        'meta.pth': {**good, 'meta': {**good['meta'], 'seed': Hostile(mark)}},
        'optimizer.pth': {**good, 'optimizer': {**good['optimizer'], 'x': [Hostile(mark)]}},
        'config_text.pth': {**good, 'meta': {**good['meta'], 'config': code}},
    }
    for name, content in files.items():
        write(run / name, content, 'legacy' if name == 'optimizer.pth' else 'zip')
    write(run / 'evil.pdparams', Hostile(mark), 'paddle')
    return mark


@pytest.mark.parametrize(
    'tool, arguments, file',
    [
        ('train.py', ['--resume', 'optimizer.pth'], 'optimizer.pth'),
        ('test.py', ['evil.pdparams'], 'evil.pdparams'),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ('train.py', ['--resume', 'meta.pth'], 'meta.pth'),
                ('train.py', ['--cfg-options', 'load_from=meta.pth'], 'meta.pth'),
                ('train.py', ['--cfg-options', 'load_from=evil.pdparams'], 'evil.pdparams'),
                ('test.py', ['optimizer.pth'], 'optimizer.pth'),
            ]
        ),
    ],
)
def test_tools_refuse(run, evil, tool, arguments, file):
    code, printed = run_tool(
        tool, 'config.py', '--work-dir', 'wd2', *arguments, cwd=run, check=False
    )
    assert code == 2, printed[-3000:]
    assert f'error: checkpoint {file} is refused: it holds' in printed and 'mkdir' in printed
    assert 'Falling back' not in printed
    assert not evil.exists()


@pytest.mark.slow
def test_resume_auto_refuses(run, evil):
    work_dir = run / 'wd_auto'
    work_dir.mkdir()
    shutil.copy(run / 'meta.pth', work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text('epoch_1.pth')
    code, printed = run_tool(
        'train.py', 'config.py', '--work-dir', 'wd_auto', '--resume', cwd=run, check=False
    )
    assert code == 2 and 'epoch_1.pth is refused' in printed
    assert not evil.exists()


@pytest.mark.slow
def test_a_config_in_a_checkpoint_is_not_run_when_resuming(run, evil):
    _, printed = run_tool(
        'train.py',
        'config.py',
        '--work-dir',
        'wd3',
        '--resume',
        'config_text.pth',
        '--cfg-options',
        'train_cfg.max_epochs=2',
        cwd=run,
    )
    assert 'resumed epoch: 1' in printed
    assert not evil.exists()


@pytest.mark.slow
def test_the_converter_refuses(run, evil):
    for file in ('meta.pth', 'evil.pdparams'):
        code, printed = run_tool('convert_weights.py', file, 'new.pth', cwd=run, check=False)
        assert code == 2 and f'{file} is refused' in printed
    assert not evil.exists() and not (run / 'new.pth').exists()


INFERENCE = """
from mmdet.apis import DetInferencer, init_detector
from mmseg.apis import MMSegInferencer, init_model

for file in ('meta.pth', 'optimizer.pth'):
    for call in (
        lambda: DetInferencer(model='config.py', weights=file, device='cpu'),
        lambda: init_detector('config.py', file, device='cpu'),
        lambda: MMSegInferencer(model='seg.py', weights=file, device='cpu'),
        lambda: init_model('seg.py', file, device='cpu'),
    ):
        try:
            call()
            print('loaded', file)
        except Exception as error:
            print(f'{type(error).__name__}: {error}')
"""


def test_inference_apis_refuse(run, evil):
    """As the README shows them: nothing of ours is imported but by the config."""
    data = write_ade20k(run / 'seg_shapes', 2, 1, (64, 64))
    use_own_data(load_config('fpn_cyclemlp_b1_256x256_600i_small'), data).dump(run / 'seg.py')
    (run / 'infer.py').write_text(INFERENCE)
    _, printed = run_tool(run / 'infer.py', cwd=run)
    for file in ('meta.pth', 'optimizer.pth'):
        assert printed.count(f'CheckpointError: checkpoint {file} is refused') == 4, printed
    assert 'loaded' not in printed
    assert not evil.exists()


@pytest.mark.slow
@pytest.mark.parametrize('option', [['--unsafe-load'], ['--cfg-options', 'unsafe_load=True']])
def test_the_only_way_round_warns(run, evil, option):
    _, printed = run_tool('test.py', 'config.py', 'meta.pth', '--work-dir', 'wd4', *option, cwd=run)
    assert 'unsafe loading is on' in printed
    assert 'meta.pth is unpickled although safe loading refuses it' in printed
    assert evil.exists()
    evil.rmdir()


# Lies and damage


@pytest.fixture(scope='module')
def whole_files(tmp_path_factory):
    """A model's state dict, and the file that it is in each format, as bytes."""
    torch.manual_seed(0)
    model = CycleMLP(TINY)
    state = model.state_dict()
    folder = tmp_path_factory.mktemp('whole')
    convert(write(folder / 'zip.pth', state, 'zip'), folder / 'x.safetensors')
    published = published_state_dict(model)
    arrays = {
        name: (t.t() if t.dim() == 2 else t).contiguous().numpy() for name, t in published.items()
    }
    legacy = io.BytesIO()
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    return state, {
        'zip': (folder / 'zip.pth').read_bytes(),
        'legacy': legacy.getvalue(),
        'pdparams': pickle.dumps(arrays, protocol=4),
        'safetensors': (folder / 'x.safetensors').read_bytes(),
    }


def read_apart(folder, state, tmp_path):
    """Runs ``read_hostile.py``; its results by file name."""
    torch.save(state, tmp_path / 'expected.pth')
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parent / 'read_hostile.py'),
            str(folder),
            str(tmp_path / 'expected.pth'),
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line[0] == '{']
    assert len(results) == len(list(folder.iterdir()))
    for result in results:
        assert result['seconds'] < 10, result
        for error in (result['error'], result['mmengine']):
            assert error is None or str(folder / result['name']) in error, result
            assert error is None or len(error) < 1500, result
    return {result['name']: result for result in results}


def test_files_that_lie(whole_files, tmp_path):
    folder = tmp_path / 'lies'
    folder.mkdir()
    groups = {
        'pickle': lying_pickles,
        'zip': lying_zips,
        'legacy': lying_legacy_files,
        'safetensors': lying_safetensors,
    }
    for group, files in groups.items():
        for name, content in files():
            (folder / f'{group}_{name}').write_bytes(content)
    results = read_apart(folder, whole_files[0], tmp_path)
    assert len(results) > 80
    loaded = [name for name, result in results.items() if result['error'] is None]
    assert not loaded
    # An expanded tensor, a count of records that no reader uses, and a field more in a header.
    harmless = {'zip_overlap', 'zip_many', 'safetensors_more'}
    assert {name for name, result in results.items() if result['mmengine'] is None} <= harmless


def read_quickly(content, path):
    """As a bare pickle, a zip and a legacy file; the errors, None for what was read."""
    out = []
    for form, whole in {
        'pickle': content,
        'zip': torch_zip(content),
        'legacy': legacy(content, [], b''),
    }.items():
        path.write_bytes(whole)
        start = time.process_time()
        try:
            read_checkpoint(path)
            out.append(None)
        except CheckpointError as error:
            assert path.name in str(error) and len(str(error)) < 1000, form
            out.append(str(error))
        assert time.process_time() - start < 5, form
    return out


@pytest.mark.parametrize('kind', ENDLESS)
def test_containers_that_never_end(kind, tmp_path):
    for place, content in endless(ENDLESS[kind]):
        errors = read_quickly(content, tmp_path / 'endless.pth')
        # A number is data; metadata that make no sense are left out.
        assert kind == 'a huge number' or place == 'metadata' or all(errors), place


@pytest.mark.parametrize('kind', dict(colliding_keys()))
def test_keys_of_one_hash_and_copies_of_copies(kind, tmp_path):
    assert all(read_quickly(dict(colliding_keys())[kind], tmp_path / 'slow.pth'))


@pytest.mark.parametrize('value', ['__init__', '__globals__', 'mean.__globals__', 'update'])
def test_attributes_of_what_is_allowed(value, tmp_path):
    history = 'mmengine.logging.history_buffer.HistoryBuffer'
    for content in (
        PROTO + call('builtins.getattr', dotted(history), text(value)) + STOP,
        PROTO + dotted(f'{history}.{value}') + STOP,
        b'\x80\x04'
        + text('mmengine.logging.history_buffer')
        + text(f'HistoryBuffer.{value}')
        + b'\x93'
        + STOP,
    ):
        errors = read_quickly(entry('a', content[2:-1]), tmp_path / 'a.pth')
        assert all(re.search(f'refused: it holds .*{value}', error) for error in errors)


@pytest.mark.parametrize(
    'owner',
    [
        'torch.Tensor',
        'mmengine.logging.history_buffer.HistoryBuffer',
        'argparse.Namespace',
        'torch._utils._rebuild_tensor_v2',
        'collections.OrderedDict',
        'torch.device',
        'builtins.int',
    ],
)
def test_classes_and_functions_are_not_changed(owner, tmp_path):
    state = b'(N}' + text('mark') + b'K\x01st'
    for content in (dotted(owner) + state + b'b', dotted(owner) + b'}' + text('mark') + b'K\x01sb'):
        assert all(read_quickly(entry('a', content), tmp_path / 'a.pth'))
    kind = pkgutil.resolve_name(owner)
    assert not hasattr(kind, 'mark')


def test_wrong_types_under_the_right_names(whole_files, tmp_path):
    state, _ = whole_files
    folder = tmp_path / 'types'
    folder.mkdir()
    name = next(iter(state))
    wrong = [
        1,
        'text',
        None,
        [],
        {},
        b'',
        1.5,
        np.ones(3),
        torch.ones(3),
        torch.ones(0),
        state[name].int(),
        state[name].bool(),
        state[name].unsqueeze(0),
        torch.Size([1]),
        torch.float32,
        torch.device('cpu'),
        (state[name],),
        slice(1),
        1j,
        {1},
        torch.ones(()),
    ]
    for i, value in enumerate(wrong):
        torch.save({**state, name: value}, folder / f'value{i}')
        torch.save({'state_dict': {**state, name: value}}, folder / f'wrapped{i}')
        torch.save(value, folder / f'alone{i}')
    for i, key in enumerate([1, None, 1.5, b'x']):
        torch.save({**state, key: torch.ones(1)}, folder / f'key{i}')
    results = read_apart(folder, state, tmp_path)
    assert [n for n, result in results.items() if result['error'] is None] == []


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pdparams', 'safetensors'])
def test_damaged_files(whole_files, tmp_path, form):
    """240 files; those of formats without checksums are not changed where their numbers are."""
    state, files = whole_files
    whole = files[form]
    keep = []
    if form == 'pdparams':
        keep = list(array_places(whole))
    elif form == 'legacy':
        keep = [(len(whole) - sum(8 + t.nbytes for t in state.values()), len(whole))]
    elif form == 'safetensors':
        keep = [(8 + int.from_bytes(whole[:8], 'little'), len(whole))]
    folder = tmp_path / 'damaged'
    folder.mkdir()
    for name, content in damaged(whole, 60, seed=len(form), keep=keep):
        (folder / name).write_bytes(content)
    results = read_apart(folder, state, tmp_path)
    for name, result in results.items():
        if name.startswith('cut'):
            assert result['error'] is not None, name
        # A flip can hit a byte that says nothing (a time stamp); then nothing has changed.
        if form == 'zip':
            assert result['error'] is not None or result['same'], name
    assert sum(result['error'] is not None for result in results.values()) >= 30
