"""Train, stop, resume, test, convert, load elsewhere: all of it by the safe loader."""

import pickle
import re

import pytest
import torch
from published_names import published_state_dict
from test_paddle import write_pdparams
from toy_runs import TINY_BACKBONE, TINY_DETECTOR, run_tool

from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights import read_checkpoint

DEMO = 'retinanet_cyclemlp_demo'
TINY = [*TINY_DETECTOR, *TINY_BACKBONE, 'randomness.seed=0', 'val_evaluator.classwise=False']
ARCH = dict(
    depths=(1, 1, 1, 1),
    widths=(8, 64, 128, 192),
    mlp_ratios=(1, 1, 1, 1),
    reweight=True,
    downsample='conv',
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    """A run of one epoch that was resumed for a second one."""
    folder = tmp_path_factory.mktemp('chain')
    write_coco(folder / 'shapes', 4, 2, (64, 64))
    common = [DEMO, '--data', 'shapes', '--work-dir', 'wd']
    run_tool('train.py', *common, '--cfg-options', *TINY, cwd=folder)
    _, printed = run_tool(
        'train.py',
        *common,
        '--resume',
        '--cfg-options',
        *TINY,
        'train_cfg.max_epochs=2',
        cwd=folder,
    )
    return folder, printed


def test_resume_loads_safely_and_all(chain):
    folder, printed = chain
    assert 'resumed epoch: 1, iter: 2' in printed
    assert re.search(r'loaded (\d+) of \1 tensors from', printed)
    assert 'Falling back' not in printed
    content = read_checkpoint(folder / 'wd' / 'epoch_2.pth')
    assert content['meta']['epoch'] == 2 and content['optimizer']['state']
    assert content['message_hub']['log_scalars']['train/loss'].data[0].size == 4


def test_tested_converted_and_tested_again_it_is_the_same(chain):
    folder, _ = chain
    found = []
    for file in ('wd/epoch_2.pth', 'new.pth', 'new.safetensors'):
        if not file.startswith('wd'):
            run_tool('convert_weights.py', 'wd/epoch_2.pth', file, cwd=folder)
        _, printed = run_tool(
            'test.py',
            f'wd/{DEMO}.py',
            file,
            '--out',
            f'{file[-8:]}.pkl',
            '--work-dir',
            'test',
            '--cfg-options',
            'model.test_cfg.score_thr=0.0',
            cwd=folder,
        )
        assert re.search(rf'loaded (\d+) of \1 tensors from {file}', printed)
        found.append(predictions(folder / f'{file[-8:]}.pkl'))
    assert all(instances['scores'].numel() for instances in found[0])
    for others in found[1:]:
        for expected, instances in zip(found[0], others, strict=True):
            assert all(torch.equal(expected[key], instances[key]) for key in expected)


def predictions(file):
    """What ``--out`` wrote, image by image: the order of its keys differs from run to run."""
    with file.open('rb') as opened:
        return [sample['pred_instances'] for sample in pickle.load(opened)]


def test_loaded_elsewhere(chain, tmp_path):
    """As a backbone, and in mmdet's inference API, from a published-format file, too."""
    folder, _ = chain
    expected = torch.load(folder / 'wd' / 'epoch_2.pth', weights_only=False)['state_dict']
    run_tool(
        'convert_weights.py',
        'wd/epoch_2.pth',
        tmp_path / 'published.pth',
        '--to',
        'published',
        cwd=folder,
    )
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth'))
    backbone = CycleMLP(ARCH, out_indices=(1, 2, 3), init_cfg=init_cfg)
    backbone.init_weights()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, expected[f'backbone.{name}']), name
    from mmdet.apis import init_detector

    run_tool('convert_weights.py', 'wd/epoch_2.pth', tmp_path / 'd.safetensors', cwd=folder)
    detector = init_detector(
        str(folder / 'wd' / f'{DEMO}.py'), str(tmp_path / 'd.safetensors'), device='cpu'
    )
    assert all(torch.equal(tensor, expected[n]) for n, tensor in detector.state_dict().items())
    classes = load_config(folder / 'wd' / f'{DEMO}.py').train_dataloader.dataset.metainfo.classes
    assert list(detector.dataset_meta['classes']) == list(classes)


def test_load_from_takes_a_paddle_classifier(chain, tmp_path):
    """Loaded where it belongs, the heads said to be new."""
    folder, _ = chain
    write_pdparams(
        tmp_path / 'paddle.pdparams', published_state_dict(CycleMLP(ARCH), classifier=10)
    )
    _, printed = run_tool(
        'train.py',
        DEMO,
        '--data',
        'shapes',
        '--work-dir',
        'wd_from',
        '--cfg-options',
        *TINY,
        f'load_from={tmp_path / "paddle.pdparams"}',
        cwd=folder,
    )
    assert re.search(rf'loaded \d+ of \d+ tensors from {tmp_path / "paddle.pdparams"}', printed)
    assert re.search(r'bbox_head: 0 of \d+, the others are new', printed)
    assert 'Epoch(train)' in printed


def test_a_half_of_a_detector_is_not_tested(chain):
    folder, _ = chain
    good = torch.load(folder / 'wd' / 'epoch_2.pth', weights_only=False)
    half = {n: t for n, t in good['state_dict'].items() if 'stages.2' not in n}
    torch.save({**good, 'state_dict': half}, folder / 'half.pth')
    code, printed = run_tool(
        'test.py', f'wd/{DEMO}.py', 'half.pth', '--work-dir', 'wd_half', cwd=folder, check=False
    )
    assert code == 2, printed[-3000:]
    assert re.search(r'error: checkpoint half\.pth does not fit the model; nothing was', printed)
    assert 'Epoch(' not in printed
