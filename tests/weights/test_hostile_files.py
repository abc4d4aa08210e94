"""Files that run code, lie or are damaged: refused by name, in little time."""

import pickle
import pkgutil
import re
import time

import hostile_files as hostile
import numpy as np
import pytest
import torch
from families import CYCLE
from hostile_files import Hostile, call, entry, hiding_places, text
from hostile_files import name as dotted
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_with_prefix
from published_names import published_state_dict

import cyclemlp_mm.safe_loading
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights import read_checkpoint, unsafe_loading
from cyclemlp_mm.weights.convert import convert

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
    model = CycleMLP(CYCLE, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    return model.state_dict()


def load_by_mmengine(path):
    return CheckpointLoader.load_checkpoint(str(path))


READERS = [
    *(read_checkpoint, init_backbone, load_by_mmengine),
    lambda path: _load_checkpoint_with_prefix('backbone', str(path)),
    lambda path: convert(path, path.with_name('converted.pth')),
]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('place', sorted(hiding_places('x')))
def test_code_is_not_run_wherever_it_hides(form, place, tmp_path):
    mark = tmp_path / 'was_run'
    for name in ('evil.pth', 'evil.pdparams'):
        path = write(tmp_path / name, hiding_places(mark)[place], form)
        for load in READERS:
            with pytest.raises(CheckpointError, match=rf'{name} is refused: it holds '):
                load(path)
    assert not mark.exists()


@pytest.mark.parametrize('form', FORMS)
def test_the_file_is_hostile_and_unsafe_loading_warns(form, tmp_path):
    mark = tmp_path / 'was_run'
    path = write(tmp_path / 'evil.pth', {'x': Hostile(mark)}, form)
    with pytest.warns(UserWarning, match=r'evil\.pth is unpickled although'), unsafe_loading():
        read_checkpoint(path)
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


@pytest.fixture(scope='module')
def whole_files(tmp_path_factory):
    """A model's state dict, and the file that it is in each format, as bytes."""
    torch.manual_seed(0)
    model = CycleMLP(CYCLE)
    state = model.state_dict()
    folder = tmp_path_factory.mktemp('whole')
    convert(write(folder / 'zip.pth', state, 'zip'), folder / 'x.safetensors')
    write(folder / 'legacy.pth', state, 'legacy')
    arrays = {
        name: (t.t() if t.dim() == 2 else t).contiguous().numpy()
        for name, t in published_state_dict(model).items()
    }
    return state, {
        'zip': (folder / 'zip.pth').read_bytes(),
        'legacy': (folder / 'legacy.pth').read_bytes(),
        'pdparams': pickle.dumps(arrays, protocol=4),
        'safetensors': (folder / 'x.safetensors').read_bytes(),
    }


def read(load, path):
    """What a file holds, or None; an error is short, comes soon and names the file."""
    start = time.process_time()
    try:
        return load(path)
    except CheckpointError as error:
        assert str(path) in str(error) and len(str(error)) < 1500, path.name
        return None
    finally:
        assert time.process_time() - start < 5, path.name


@pytest.mark.parametrize('group', hostile.GROUPS)
def test_files_that_lie(group, tmp_path):
    for name, content in hostile.GROUPS[group].items():
        (tmp_path / name).write_bytes(content)
        assert read(init_backbone, tmp_path / name) is None, name
        assert read(load_by_mmengine, tmp_path / name) is None, name


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
    'owner', ['torch.Tensor', 'torch._utils._rebuild_tensor_v2', hostile.HISTORY, 'builtins.int']
)
def test_classes_and_functions_are_not_changed(owner, tmp_path):
    state = b'}' + text('mark') + b'K\x01s'
    for content in (dotted(owner) + b'(N' + state + b'tb', dotted(owner) + state + b'b'):
        assert not can_be_read(entry('a', content), tmp_path / 'a.pth')
    assert not hasattr(pkgutil.resolve_name(owner), 'mark')


def test_wrong_types_under_the_right_names(whole_files, tmp_path):
    state, path = whole_files[0], tmp_path / 'wrong.pth'
    name, one = next(iter(state.items()))
    wrong = [1, 'text', None, [], {}, b'', np.ones(3), torch.ones(3), torch.ones(0), one.int()]
    wrong += [one.bool(), one.unsqueeze(0), (one,), torch.ones(()), slice(1), {1}, torch.float32]
    files = [{**state, key: torch.ones(1)} for key in (1, None, 1.5, b'x')]
    for value in wrong:
        files += [{**state, name: value}, {'state_dict': {**state, name: value}}, value]
    for content in files:
        torch.save(content, path)
        assert read(init_backbone, path) is None, content
        read(load_by_mmengine, path)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pdparams', 'safetensors'])
def test_damaged_files(whole_files, tmp_path, form):
    """240 files; of formats without checksums, changed numbers are not noticed."""
    state, files = whole_files
    for name, content in hostile.damaged(files[form], 60, seed=len(form)):
        path = tmp_path / name
        path.write_bytes(content)
        loaded = read(init_backbone, path)
        read(load_by_mmengine, path)
        assert loaded is None or not name.startswith('cut'), name
        # A flip can hit a byte that says nothing (a time stamp); then nothing has changed.
        if form == 'zip' and loaded is not None:
            assert all(torch.equal(loaded[n], tensor) for n, tensor in state.items()), name
