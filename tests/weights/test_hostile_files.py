"""Files that run code, lie or are damaged: refused by name, in little time."""

import io
import pickle
import pkgutil
import re
import shutil
import time

import hostile_files as hostile
import numpy as np
import pytest
import torch
from hostile_files import Hostile, call, entry, hiding_places, text
from hostile_files import name as dotted
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_with_prefix
from published_names import published_state_dict
from toy_runs import run_tool

import cyclemlp_mm.safe_loading
from cyclemlp_mm.apis.test import test as run_test
from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.engine import load_config, use_own_data
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights import allow_unsafe_loading, read_checkpoint, unsafe_loading
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


def init_backbone(path, arch=TINY):
    model = CycleMLP(arch, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    return model.state_dict()


def load_by_mmengine(path):
    return CheckpointLoader.load_checkpoint(str(path))


READERS = {
    'read_checkpoint': read_checkpoint,
    'init_cfg': init_backbone,
    'mmengine': load_by_mmengine,
    'mmengine with a prefix': lambda path: _load_checkpoint_with_prefix('backbone', str(path)),
    'convert': lambda path: convert(path, path.with_name('converted.pth')),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('place', sorted(hiding_places('x')))
def test_code_is_not_run_wherever_it_hides(form, place, tmp_path):
    mark = tmp_path / 'was_run'
    for name in ('evil.pth', 'evil.pdparams'):
        path = write(tmp_path / name, hiding_places(mark)[place], form)
        for read in READERS.values():
            with pytest.raises(CheckpointError, match=rf'{name} is refused: it holds '):
                read(path)
    assert not mark.exists()


@pytest.mark.parametrize('form', FORMS)
def test_the_file_is_hostile_and_unsafe_loading_warns(form, tmp_path):
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


def test_too_little_memory_is_not_a_damaged_file(tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise MemoryError

    torch.save({'a': torch.ones(2)}, tmp_path / 'a.pth')
    monkeypatch.setitem(cyclemlp_mm.weights.allowed_types.FUNCTIONS, 'builtins.dict', out_of_memory)
    with pytest.raises(MemoryError):
        read_checkpoint(tmp_path / 'a.pth')


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
    'tool, arguments',
    [
        ('train.py', ['--resume', 'optimizer.pth']),
        ('test.py', ['evil.pdparams']),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ('train.py', ['--resume', 'meta.pth']),
                ('train.py', ['--cfg-options', 'load_from=meta.pth']),
                ('train.py', ['--cfg-options', 'load_from=evil.pdparams']),
                ('test.py', ['optimizer.pth']),
            ]
        ),
    ],
)
def test_tools_refuse(run, evil, tool, arguments):
    arguments = [tool, 'config.py', '--work-dir', 'wd2', *arguments]
    code, printed = run_tool(*arguments, cwd=run, check=False)
    file = arguments[-1].removeprefix('load_from=')
    assert code == 2, printed[-3000:]
    assert f'error: checkpoint {file} is refused: it holds' in printed and 'mkdir' in printed
    assert 'Falling back' not in printed
    assert not evil.exists()


@pytest.mark.slow
def test_resume_auto_refuses_or_unpickles_once(run, evil):
    work_dir = run / 'wd_auto'
    work_dir.mkdir()
    shutil.copy(run / 'meta.pth', work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text('epoch_1.pth')
    resume = ['train.py', 'config.py', '--work-dir', 'wd_auto', '--resume']
    code, printed = run_tool(*resume, cwd=run, check=False)
    assert code == 2 and 'epoch_1.pth is refused' in printed
    assert not evil.exists()
    _, printed = run_tool(*resume, '--unsafe-load', cwd=run, check=False)
    assert printed.count('is unpickled although') == 1
    evil.rmdir()


@pytest.mark.slow
def test_a_config_in_a_checkpoint_is_not_run_when_resuming(run, evil):
    options = ['--resume', 'config_text.pth', '--cfg-options', 'train_cfg.max_epochs=2']
    _, printed = run_tool('train.py', 'config.py', '--work-dir', 'wd3', *options, cwd=run)
    assert 'resumed epoch: 1' in printed
    assert not evil.exists()


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


@pytest.mark.parametrize('option', [['--unsafe-load'], ['--cfg-options', 'unsafe_load=True']])
def test_both_options_of_unsafe_loading_warn(run, evil, option, monkeypatch):
    monkeypatch.chdir(run)
    try:
        with pytest.warns(UserWarning) as caught:
            run_test(['config.py', 'meta.pth', '--work-dir', 'wd4', *option])
    finally:
        allow_unsafe_loading(False)
    messages = ' '.join(str(warning.message) for warning in caught)
    assert 'unsafe loading is on' in messages
    assert 'meta.pth is unpickled although safe loading refuses it' in messages
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
    arrays = {
        name: (t.t() if t.dim() == 2 else t).contiguous().numpy()
        for name, t in published_state_dict(model).items()
    }
    legacy = io.BytesIO()
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    return state, {
        'zip': (folder / 'zip.pth').read_bytes(),
        'legacy': legacy.getvalue(),
        'pdparams': pickle.dumps(arrays, protocol=4),
        'safetensors': (folder / 'x.safetensors').read_bytes(),
    }


def read(load, path, seconds=5):
    """What a file holds, or None; an error is short, comes soon and names the file."""
    start = time.process_time()
    try:
        return load(path)
    except CheckpointError as error:
        assert str(path) in str(error) and len(str(error)) < 1500, path.name
        return None
    finally:
        assert time.process_time() - start < seconds, path.name


@pytest.mark.parametrize('group', hostile.GROUPS)
def test_files_that_lie(group, whole_files, tmp_path):
    # An expanded tensor, a count of records that no reader uses, and a field more in a header.
    harmless = {'overlap', 'many', 'more'}
    for name, content in hostile.GROUPS[group].items():
        path = tmp_path / name
        path.write_bytes(content)
        assert read(init_backbone, path) is None, name
        assert read(load_by_mmengine, path) is None or name in harmless, name


def can_be_read(content, path):
    """As a bare pickle, a zip or a legacy file."""
    found = []
    for file in (content, hostile.torch_zip(content), hostile.legacy(content, [], b'')):
        path.write_bytes(file)
        found.append(read(read_checkpoint, path))
    return any(one is not None for one in found)


@pytest.mark.parametrize('kind', hostile.ENDLESS)
def test_containers_that_never_end(kind, tmp_path):
    for place, content in hostile.endless(hostile.ENDLESS[kind]).items():
        # Metadata that make no sense are left out.
        assert not can_be_read(content, tmp_path / 'endless.pth') or place == 'metadata', place


@pytest.mark.parametrize('kind', hostile.SLOW)
def test_keys_of_one_hash_and_copies_of_copies(kind, tmp_path):
    assert not can_be_read(hostile.SLOW[kind], tmp_path / 'slow.pth')


@pytest.mark.parametrize('value', ['__init__', '__globals__', 'mean.__globals__', 'update'])
def test_attributes_of_what_is_allowed(value, tmp_path):
    module, _, kind = hostile.HISTORY.rpartition('.')
    for content in (
        call('builtins.getattr', dotted(hostile.HISTORY), text(value)),
        dotted(f'{hostile.HISTORY}.{value}'),
        text(module) + text(f'{kind}.{value}') + b'\x93',
    ):
        (tmp_path / 'a.pth').write_bytes(entry('a', content))
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / 'a.pth')
        assert re.search(f'refused: it holds .*{value}', str(caught.value))


@pytest.mark.parametrize(
    'owner',
    [
        *('torch.Tensor', 'torch.device', 'torch._utils._rebuild_tensor_v2', hostile.HISTORY),
        *('argparse.Namespace', 'collections.OrderedDict', 'builtins.int'),
    ],
)
def test_classes_and_functions_are_not_changed(owner, tmp_path):
    state = b'}' + text('mark') + b'K\x01s'
    for content in (dotted(owner) + b'(N' + state + b'tb', dotted(owner) + state + b'b'):
        assert not can_be_read(entry('a', content), tmp_path / 'a.pth')
    assert not hasattr(pkgutil.resolve_name(owner), 'mark')


def test_wrong_types_under_the_right_names(whole_files, tmp_path):
    state, path = whole_files[0], tmp_path / 'wrong.pth'
    name = next(iter(state))
    one = state[name]
    wrong = [1, 'text', None, [], {}, b'', 1.5, np.ones(3), torch.ones(3), torch.ones(0)]
    wrong += [one.int(), one.bool(), one.unsqueeze(0), (one,), torch.ones(()), slice(1), 1j, {1}]
    wrong += [torch.Size([1]), torch.float32, torch.device('cpu')]
    files = [{**state, key: torch.ones(1)} for key in (1, None, 1.5, b'x')]
    for value in wrong:
        files += [{**state, name: value}, {'state_dict': {**state, name: value}}, value]
    for content in files:
        torch.save(content, path)
        assert read(init_backbone, path) is None, content
        read(load_by_mmengine, path)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pdparams', 'safetensors'])
def test_damaged_files(whole_files, tmp_path, form):
    """240 files; those of formats without checksums are not changed where their numbers are."""
    state, files = whole_files
    data = files[form]
    keep = {
        'zip': [],
        'pdparams': list(hostile.array_places(files['pdparams'])),
        'legacy': [(len(data) - sum(8 + t.nbytes for t in state.values()), len(data))],
        'safetensors': [(8 + int.from_bytes(data[:8], 'little'), len(data))],
    }[form]
    refused = 0
    for name, content in hostile.damaged(data, 60, seed=len(form), keep=keep):
        path = tmp_path / name
        path.write_bytes(content)
        loaded = read(init_backbone, path)
        read(load_by_mmengine, path)
        refused += loaded is None
        assert loaded is None or not name.startswith('cut'), name
        # A flip can hit a byte that says nothing (a time stamp); then nothing has changed.
        if form == 'zip' and loaded is not None:
            assert all(torch.equal(loaded[n], tensor) for n, tensor in state.items()), name
    assert refused >= 30
