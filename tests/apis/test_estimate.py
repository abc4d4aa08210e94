"""tools/estimate.py: parts and batches of an estimate, and errors of one sentence."""

import copy

import pytest
import torch
from prove_estimate import MOST, compare
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from toy_models import ARCH

from cyclemlp_mm import step_memory
from cyclemlp_mm.apis.estimate import estimate, image_size, largest_batch
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.errors import UserError

TOY = ['cyclemlp_demo', '--size', '64', '64', '--cfg-options']
TOY += [f'model.backbone.arch={ARCH}', f'model.head.in_channels={ARCH["widths"][-1]}']
PARTS = ('weights', 'gradients', 'optimizer', 'activations')


def test_the_parts_are_the_whole(capsys):
    found = estimate([*TOY, 'work_dir="x"', '--batch-size', '8'])
    assert '8 images of 64 x 64' in capsys.readouterr().out
    assert found['total'] == sum(found[part] for part in PARTS)
    assert found['optimizer'] > 1.9 * found['weights']  # Adam's two averages


@pytest.mark.slow
def test_activations_grow_with_the_batch():
    few, many = (estimate([*TOY, '--batch-size', n]) for n in ('8', '16'))
    assert few['weights'] == many['weights']
    assert 1.7 < many['activations'] / few['activations'] < 2.1


@pytest.mark.parametrize('limit', [11, 1000, 1001, 54321])
def test_the_largest_batch_is_the_largest(limit):
    def bytes_of(number):
        calls.append(number)
        return 7 + 3 * number + number % 2  # not quite a line

    calls = []
    largest = largest_batch(bytes_of, limit, {2: bytes_of(2)})
    assert bytes_of(largest) <= limit < bytes_of(largest + 1)
    assert len(calls) < 12
    with pytest.raises(UserError, match='try --amp, --with-cp'):
        largest_batch(bytes_of, 9)


@pytest.mark.slow
def test_the_largest_batch_of_a_gpu():
    found = estimate([*TOY, '--batch-size', '4', '--gpu-memory', '0.05'])
    most = found['largest_batch']
    with pytest.raises(UserError, match='one image takes'):
        estimate([*TOY, '--size', '512', '512', '--gpu-memory', '0.001'])
    fits, does_not = (estimate([*TOY, '--batch-size', str(n)])['total'] for n in (most, most + 1))
    assert fits <= 0.9 * 0.05 * 2**30 < does_not


@pytest.mark.slow
def test_a_real_step():
    assert abs(compare('cyclemlp_b1_in1k', 2, (224, 224), False, False) - 1) < MOST


@pytest.mark.slow
def test_a_two_stage_detector():
    """All objects that the sampler takes are counted."""
    toy = ['mask_rcnn_cyclemlp_demo', '--batch-size', '1', '--size', '64', '64', '--cfg-options']
    sampler = 'model.train_cfg.rcnn.sampler.num'
    few, many = (estimate([*toy, f'{sampler}={number}']) for number in (128, 512))
    # What the layers keep: of the box head its input, of the mask head the inputs of two
    # convolutions, of the upsampling and of the last layer, for a quarter of the boxes.
    box, mask = 64 * 7 * 7, (64 + 32 + 32) * 14 * 14 + 32 * 28 * 28
    kept = 4 * (384 * box + 384 // 4 * mask)
    assert kept < many['total'] - few['total'] < 2 * kept


@pytest.mark.slow
def test_checkpointing_and_amp_take_less():
    base = ['cyclemlp_b1_in1k', '--batch-size', '8', '--size', '224', '224']
    plain, checkpointed, amp = (estimate([*base, *x]) for x in ([], ['--with-cp'], ['--amp']))
    assert checkpointed['activations'] < 0.8 * plain['activations']
    assert amp['activations'] < 0.8 * plain['activations']
    assert amp['weights'] == checkpointed['weights'] == plain['weights']


@pytest.mark.slow
def test_the_teacher_is_counted_once():
    """RegNetX-4GF has 22,118,248 parameters; of the student, an average is kept, too."""
    student, both = (
        estimate([name, '--batch-size', '1', '--size', '64', '64'])['weights']
        for name in ('cyclemlp_b1_in1k', 'cyclemlp_b1_distill_in1k')
    )
    assert 1 < (both - student) / (4 * 22118248) < 1.01  # buffers


def test_sizes_of_images():
    sizes = {
        'mask_rcnn_cyclemlp_b1_fpn_1x_coco': (800, 1333),
        'mask_rcnn_cyclemlp_b2_fpn_ms-3x_coco': (800, 1333),
        'upernet_cyclemlp_b1_512x512_160k_ade20k': (512, 512),
        'cyclemlp_b1_in1k': (224, 224),
    }
    assert {name: image_size(load_config(name)) for name in sizes} == sizes
    cfg = load_config('retinanet_cyclemlp_b1_fpn_1x_coco')
    cfg.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile')]
    with pytest.raises(UserError, match='give --size'):
        image_size(cfg)


def test_private_names():
    """What step_memory needs of PyTorch's fake tensors, which are private."""
    with FakeTensorMode(), pytest.raises(step_memory.DynamicOutputShapeException):
        torch.zeros(3).nonzero()
    with FakeTensorMode(), pytest.raises(step_memory.DataDependentOutputException):
        torch.zeros(3).sum().item()
    live = step_memory._LiveStorages()
    with FakeTensorMode(), live:
        kept = torch.zeros(256)
        torch.zeros(1024)
        assert isinstance(kept, FakeTensor)
    assert live.now.total() == 1024
    assert live.peak.total() == 5 * 1024
    copied = step_memory.mock.patch.object(
        FakeTensor, '__deepcopy__', step_memory._copy, create=True
    )
    with FakeTensorMode(), copied:
        layer = copy.deepcopy(torch.nn.Linear(2, 2))
        assert isinstance(layer.weight, torch.nn.Parameter)


def test_autocast_of_a_gpu():
    """On a CPU, the dtypes that PyTorch's own autocast gives to fake tensors of a GPU."""
    functional = torch.nn.functional
    calls = [
        lambda x: functional.layer_norm(x, x.shape[-1:]),
        lambda x: functional.interpolate(x, scale_factor=2),
        lambda x: functional.l1_loss(x, x),
        lambda x: functional.cross_entropy(x, x),
        functional.gelu,
        lambda x: x.softmax(1),
        lambda x: x.sum(),
        lambda x: x.mean(),
        lambda x: x + x.float(),
        lambda x: x.float() @ x.float(),
    ]

    def dtypes(device, low):
        x = torch.zeros(1, 4, 4, 4, device=device, dtype=low)
        return [call(x).dtype == torch.float32 for call in calls]

    before = torch.is_autocast_enabled('cuda')
    with FakeTensorMode():
        torch.set_autocast_enabled('cuda', True)  # torch.autocast does nothing without a GPU
        try:
            expected = dtypes('cuda', torch.float16)
        finally:
            torch.set_autocast_enabled('cuda', before)
        with torch.autocast('cpu', torch.bfloat16), step_memory._Float32OnGpu():
            assert dtypes('cpu', torch.bfloat16) == expected
    assert 3 < sum(expected) < len(calls)
