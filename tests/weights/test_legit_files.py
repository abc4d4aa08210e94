"""What training programs save is read, with the values that ``torch.load`` gives."""

import argparse
import contextlib
import datetime
import decimal
import io
import pathlib
import pickle
import random
import re
import types
import uuid
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque

import mmengine.optim
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage
from mmengine.optim import OPTIMIZERS, OptimWrapper

import cyclemlp_mm.safe_loading  # noqa: F401
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.weights import allowed_types, read_checkpoint
from cyclemlp_mm.weights.formats import PaddleStateDict


def history(length):
    buffer = HistoryBuffer()
    buffer._log_history = np.random.default_rng(0).random(length)
    buffer._count_history = np.ones(length)
    return buffer


def plain(tensor):
    """Bit by bit."""
    flat = tensor.detach().to_dense().resolve_conj().resolve_neg().contiguous().flatten()
    return flat.view(torch.uint8) if len(flat) else flat


def assert_equal(read, expected):
    if isinstance(expected, torch.Tensor):
        assert type(read) in (torch.Tensor, torch.nn.Parameter) and read.dtype == expected.dtype
        assert read.requires_grad == expected.requires_grad
        assert torch.equal(*(plain(t) for t in (read, expected)))
    elif isinstance(expected, np.ndarray):
        assert read.dtype == expected.dtype and np.array_equal(read, expected)
    elif isinstance(expected, HistoryBuffer):
        assert_equal(vars(read), vars(expected))
    elif isinstance(expected, dict):
        assert type(read) is type(expected) and list(map(str, read)) == list(map(str, expected))
        for one, other in zip(read.values(), expected.values(), strict=True):
            assert_equal(one, other)
    elif isinstance(expected, (list, tuple)):
        assert type(read) is type(expected) and len(read) == len(expected)
        for one, other in zip(read, expected, strict=True):
            assert_equal(one, other)
    else:
        assert type(read) is type(expected) and repr(read) == repr(expected)


class Tagged(torch.Tensor):
    """As libraries have them: the numbers are an ordinary tensor's."""


def python_objects():
    arguments = argparse.Namespace(lr=0.1, out=pathlib.Path('out'), when=datetime.timedelta(1))
    yield 'arguments', arguments
    yield 'nested arguments', argparse.Namespace(a=arguments, b=types.SimpleNamespace(c=[1]))
    named = argparse.Namespace()
    vars(named).update({'self': 1, 'a b': 2})
    yield 'arguments of any name', named
    yield 'paths', [pathlib.Path('/a/b'), pathlib.PurePosixPath('c')]
    utc = datetime.timezone.utc
    times = [datetime.datetime(2024, 1, 1), datetime.datetime.now(utc), datetime.time(1, 2)]
    yield 'times', [*times, datetime.date(2024, 1, 1), datetime.timedelta(seconds=3), utc]
    yield 'dicts', [defaultdict(list, a=[1]), defaultdict(dict, {0: {}}), defaultdict(None), {}]
    yield 'more dicts', [Counter('aab'), OrderedDict(b=1, a=2), ConfigDict(a=dict(b=1))]
    yield 'default factory', defaultdict(OrderedDict, a=OrderedDict(b=1))
    yield 'sets', [{1, 2}, frozenset('ab'), set(), deque([1, 2], 3), deque(), range(5), slice(1)]
    yield 'bytes', [b'', b'abc', b'\xff\0', bytearray(), bytearray(b'\xff')]
    yield 'numbers', [10**60, -(10**300), 1 + 2j, decimal.Decimal('1.5'), float('nan'), True, None]
    yield 'types', [int, float, list, dict, type(None), ..., NotImplemented, np.float32]
    yield 'text', ['\ud800', '\U0001f40d' * 10, '']
    yield (
        'keys',
        {1: 2, (0, 1): 2, ('a', (1, None)): 3, frozenset([1]): 4, b'a': 5, 1.5: 6, None: 7},
    )
    yield 'numpy keys', {np.int64(3): 1, np.str_('a'): 2, pathlib.Path('a'): 3}
    yield 'an id', uuid.UUID(int=2**100)
    yield 'random states', [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    yield 'a generator', np.random.default_rng(0).bit_generator.state
    yield 'torch', [torch.float16, torch.device('cuda:1'), torch.Size([1, 2]), torch.strided]
    yield 'scalars', [np.float64(80.1), np.float16(1), np.int8(3), np.bool_(True), np.complex64(1j)]
    yield 'text of numpy', [np.str_('wall'), np.str_(''), np.bytes_(b'x'), np.array(['a', 'sky'])]
    yield 'arrays', [np.arange(6.0).reshape(2, 3).T, np.array(3.0), np.zeros((0, 3)), np.ones(0)]
    yield 'more arrays', [np.array([True]), np.arange(10)[::2], np.zeros(3, np.complex128)]
    yield 'byte orders', [np.arange(3).astype(kind) for kind in ('>f4', '>i8', '<u2', '>U2')]
    yield 'histories', {'loss': history(3)}


def rare_types():
    """Types without a storage class of their own: PyTorch 2.1 has some, but cannot save them."""
    for kind in ('float8_e4m3fn', 'float8_e5m2', 'uint16', 'uint32', 'complex32'):
        with contextlib.suppress(AttributeError, KeyError):
            torch.save(torch.zeros(3, dtype=getattr(torch, kind)), io.BytesIO())
            yield kind


def tensors():
    weight = torch.rand(10, 10)
    yield 'shared', [weight, weight.t(), weight[2:5], weight.view(-1)]
    yield 'parts', [torch.rand(100, 100)[::3, 1], torch.rand(2, 3, 4, 5).permute(0, 2, 3, 1)]
    yield 'expanded', [torch.ones(1, 4).expand(3, 4), torch.arange(10.0).unfold(0, 4, 1)]
    yield 'empty', [torch.empty(0), torch.empty(0, 5), torch.tensor(1.0), torch.empty(3, 0, 2)]
    yield 'gradients', [torch.nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)]
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    frozen.no_weight_decay = True
    yield 'attributes', [frozen, torch.nn.Parameter(torch.tensor([1, 2]), requires_grad=False)]
    imaginary = torch.randn(3, 3, dtype=torch.complex64)
    yield 'views', [imaginary.conj(), imaginary.conj()[1:], imaginary.mH]
    yield 'negated', [torch._neg_view(torch.ones(3)), torch._neg_view(imaginary).conj()]
    kinds = ['bfloat16', 'float16', 'float64', 'int8', 'int16', 'int32', 'uint8', 'bool']
    yield 'types', [torch.ones(3, dtype=getattr(torch, kind)) for kind in kinds]
    if rare := [torch.zeros(3, dtype=getattr(torch, kind)) for kind in rare_types()]:
        yield 'rare types', rare
    yield 'sparse', [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()]


@pytest.mark.parametrize('protocol', [1, 2, 3, 4, 5])
def test_values_are_torch_loads(protocol, tmp_path):
    path = tmp_path / 'a.pth'
    for name, value in [*python_objects(), *tensors()]:
        modern = name in ('sparse', 'rare types')  # later than the legacy format
        for zipped in (True,) if modern else (True, False):
            torch.save(
                {'x': value, 'name': name},
                path,
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=zipped,
            )
            assert_equal(read_checkpoint(path), torch.load(path, weights_only=False))


@pytest.mark.skipif(not hasattr(torch, 'uint16'), reason='PyTorch 2.1 has no such type to save')
def test_types_of_a_newer_pytorch_are_named(tmp_path, monkeypatch):
    torch.save({'a': torch.zeros(3, dtype=torch.uint16)}, tmp_path / 'a.pth')
    monkeypatch.delitem(allowed_types.VALUES, 'torch.uint16')
    with pytest.raises(
        CheckpointError, match=r'a\.pth.*holds torch\.uint16, which PyTorch .* does not have'
    ):
        read_checkpoint(tmp_path / 'a.pth')


def test_protocol_0(tmp_path):
    """PyTorch writes such files, but cannot read the tensors in them."""
    content = {'a': torch.arange(3), 'args': argparse.Namespace(lr=0.1), 'b': b'\xff'}
    torch.save(content, tmp_path / 'a.pth', pickle_protocol=0)
    assert_equal(read_checkpoint(tmp_path / 'a.pth'), content)


def test_tensors_of_other_classes_become_tensors(tmp_path):
    parameter = torch.nn.Parameter(torch.rand(3).as_subclass(Tagged))
    torch.save({'a': torch.arange(3.0).as_subclass(Tagged), 'b': parameter}, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert_equal(read['a'], torch.arange(3.0))
    assert torch.equal(read['b'], parameter.detach().as_subclass(torch.Tensor))
    torch.save({'a': Tagged}, tmp_path / 'b.pth')  # but not the class itself
    with pytest.raises(CheckpointError, match=r'b\.pth is refused: it holds .*Tagged'):
        read_checkpoint(tmp_path / 'b.pth')


def test_what_is_not_data_is_refused_by_name(tmp_path):
    for content in (
        torch.nn.Linear(2, 2),
        {'args': torch.nn.GELU},
        {'f': pathlib.os.path.join},
        [np.ma.masked_array([1.0], [0])],
        {'a': np.array([{}], object)},
    ):
        torch.save(content, tmp_path / 'a.pth')
        with pytest.raises(CheckpointError, match=r'a\.pth is refused: it holds .*--unsafe-load'):
            read_checkpoint(tmp_path / 'a.pth')


def test_files_without_checksums(tmp_path):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this version of torch always writes checksums')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a': torch.ones(3)}, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / 'a.pth')['a'], torch.ones(3))


def test_a_changed_number_is_noticed_and_a_second_archive(tmp_path):
    path, numbers = tmp_path / 'a.pth', torch.arange(100.0)
    torch.save({'a': numbers}, path)
    whole = path.read_bytes()
    for at in range(0, 400, 37):
        changed = bytearray(whole)
        changed[whole.index(numbers.numpy().tobytes()) + at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"a\.pth cannot be read .*Bad CRC-32.*data/0'"):
            read_checkpoint(path)
    path.write_bytes(whole + whole)  # readers disagree on what is read then
    with pytest.raises(CheckpointError, match='bytes precede'):
        read_checkpoint(path)


# Files of others


def test_detectron2s_numpy_files(tmp_path):
    content = {'model': {'a': np.ones(3)}, '__author__': 'x', 'matching_heuristics': True}
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(content))
    read = read_checkpoint(tmp_path / 'a.pkl')
    assert_equal(read, {**content, 'model': {'a': torch.ones(3, dtype=torch.float64)}})


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_paddles_other_entries(protocol, tmp_path):
    parts = {'a@@.0': np.ones(3), 'a@@.1': np.zeros(3)}
    cut = {'a': {'OriginShape': (2, 3), 'slices': list(parts)}}
    content = {**parts, 'UnpackBigParamInfor@@': cut, 'lr': 0.1, 'LR_Scheduler': {'last_epoch': 3}}
    content |= {'empty': np.zeros((0, 3), np.float32), 'big': np.arange(3, dtype='>f4')}
    (tmp_path / 'a.pdparams').write_bytes(pickle.dumps(content, protocol))
    read = read_checkpoint(tmp_path / 'a.pdparams')
    assert type(read) is PaddleStateDict and read['lr'] == 0.1
    assert read['LR_Scheduler'] == {'last_epoch': 3} and read['empty'].shape == (0, 3)
    assert torch.equal(read['big'], torch.arange(3.0))
    assert read['a'].tolist() == [[1, 1, 1], [0, 0, 0]] and 'a@@.0' not in read


def test_python_2s_files(tmp_path):
    array = np.arange(3, dtype=np.float32)
    data = b'\x80\x02}U\x01aU' + bytes([len(array.tobytes())]) + array.tobytes() + b's.'
    torch.save({}, tmp_path / 'a.pth')
    with (
        zipfile.ZipFile(tmp_path / 'a.pth') as old,
        zipfile.ZipFile(tmp_path / 'b.pth', 'w') as new,
    ):
        for name in old.namelist():
            new.writestr(name, data if name.endswith('data.pkl') else old.read(name))
    text = read_checkpoint(tmp_path / 'b.pth')['a']
    assert text.encode('utf-8', 'surrogateescape') == array.tobytes()


# mmengine's own states


SCHEDULERS = {
    'Constant': {},
    'CosineAnnealing': dict(T_max=5),
    'Exponential': dict(gamma=0.9),
    'Linear': {},
    'MultiStep': dict(milestones=[1, 4]),
    'Step': dict(step_size=2),
    'Poly': {},
    'OneCycle': dict(eta_max=0.01, total_steps=20),
    'CosineRestart': dict(periods=[4, 9], restart_weights=[1, 1], eta_min=0),
    'ReduceOnPlateau': dict(monitor='loss', patience=0),
}


def scheduler(name, **more):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    stem = re.sub('(LR|Momentum|ParamScheduler)$', '', name)
    if name.endswith('ParamScheduler'):
        more['param_name'] = 'lr'
    kind = getattr(mmengine.optim.scheduler, name)
    return kind(OptimWrapper(optimizer), **SCHEDULERS[stem], **more)


def advance(made, steps):
    for i in range(steps):
        made.step({'loss': 1.0 + i}) if 'ReduceOnPlateau' in type(made).__name__ else made.step()
    group = made.optimizer.param_groups[0]
    return group['lr'], group['momentum'], made.last_step


def test_schedulers_go_on_where_they_were(tmp_path):
    for name in mmengine.optim.scheduler.__all__:
        if name.startswith('_'):
            continue
        made, other = scheduler(name), scheduler(name)
        advance(made, 3)
        state = dict(scheduler=made.state_dict(), optimizer=made.optimizer.state_dict())
        torch.save(state, tmp_path / 'a.pth')
        read = read_checkpoint(tmp_path / 'a.pth')
        other.optimizer.load_state_dict(read['optimizer'])
        other.load_state_dict(read['scheduler'])
        assert advance(other, 4) == advance(made, 4), name
    made = scheduler('OneCycleLR', anneal_strategy='linear')
    torch.save(made.state_dict(), tmp_path / 'a.pth', pickle_protocol=4)
    assert read_checkpoint(tmp_path / 'a.pth')['anneal_func'] is made.anneal_func


def test_optimisers(tmp_path):
    """Those of mmengine's registry that need no other package."""
    tried = 0
    for kind in OPTIMIZERS.module_dict.values():
        parameter = torch.nn.Parameter(torch.rand(4, 4))
        try:
            optimizer = kind([parameter], lr=0.1)
            parameter.grad = torch.rand(4, 4)
            optimizer.step()
        except (TypeError, RuntimeError, ImportError):  # LBFGS' closure, sparse gradients
            continue
        torch.save(optimizer.state_dict(), tmp_path / 'a.pth')
        assert_equal(read_checkpoint(tmp_path / 'a.pth'), optimizer.state_dict())
        tried += 1
    assert tried >= 10


def test_logs_of_300k_iterations_and_averaged_models(tmp_path):
    path, model = tmp_path / 'a.pth', torch.nn.Linear(2, 2)
    scalars = OrderedDict((f'train/{key}', history(300_000)) for key in ('loss', 'lr', 'time'))
    content = dict(message_hub=dict(log_scalars=scalars, runtime_info=OrderedDict(iter=300_000)))
    for kind in (ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage):
        content[kind.__name__] = kind(model).state_dict()
    torch.save(content, path)
    assert_equal(read_checkpoint(path), torch.load(path, weights_only=False))
