"""``--deploy``: the tools' results are those of the model as trained."""

import re

import pytest
from toy_runs import NO_WORKERS, run_tool

from cyclemlp_mm.datasets.shapes import write_ade20k, write_image_folders

pytest.importorskip('mmseg')

CONFIG = 'fpn_mpvit_tiny_256x256_600i_small'
TINY = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'model.data_preprocessor.size=(64,64)',
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
    'train_dataloader.dataset.pipeline.2.scale=(64,64)',
    *NO_WORKERS,
    'default_hooks.checkpoint.interval=2',
]


def test_deploy_evaluates_alike(tmp_path):
    data = write_ade20k(tmp_path / 'shapes', 4, 2, (64, 64))
    _, printed = run_tool(
        'train.py', CONFIG, '--data', data, '--work-dir', 'wd', '--cfg-options', *TINY, cwd=tmp_path
    )
    trained = re.search(r'mIoU: ([\d.]+)', printed)[1]
    _, printed = run_tool(
        'test.py',
        tmp_path / 'wd' / f'{CONFIG}.py',
        tmp_path / 'wd' / 'iter_2.pth',
        '--deploy',
        cwd=tmp_path,
    )
    assert 'what can be folded was folded' in printed
    assert re.search(r'mIoU: ([\d.]+)', printed)[1] == trained
    # What test.py writes into the work dir asks the next run again.
    assert 'DeployModel' not in (tmp_path / 'wd' / f'{CONFIG}.py').read_text()


@pytest.mark.timeout(600)
def test_deploy_evaluates_averaged_weights_alike(tmp_path):
    """EMAHook swaps weights before and after the test; the data have fewer than five classes."""
    pytest.importorskip('mmpretrain')
    config = 'mpvit_tiny_in1k'
    data = write_image_folders(tmp_path / 'shapes', 8, 4, (64, 64))
    _, printed = run_tool(
        'train.py',
        config,
        '--data',
        data,
        '--work-dir',
        'wd',
        '--cfg-options',
        *NO_WORKERS,
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=4',
        cwd=tmp_path,
    )
    [trained] = re.findall(r'Epoch\(val\).*accuracy/top1: ([\d.]+)', printed)
    _, printed = run_tool(
        'test.py',
        tmp_path / 'wd' / f'{config}.py',
        tmp_path / 'wd' / 'epoch_1.pth',
        '--deploy',
        cwd=tmp_path,
    )
    assert 'what can be folded was folded' in printed
    assert re.search(r'Epoch\(test\).*accuracy/top1: ([\d.]+)', printed)[1] == trained
    assert 'top5' not in printed


def test_the_benchmark_knows_mpvit_and_deploy(tmp_path):
    _, printed = run_tool(
        'benchmark.py',
        '--arch',
        'mpvit_tiny',
        't',
        '--size',
        '1x64x64',
        '--deploy',
        '--forms',
        '--repeats',
        '2',
        '--out',
        tmp_path / 'out',
        cwd=tmp_path,
    )
    assert re.search(r'ours\s+mpvit_tiny', printed) and (tmp_path / 'out/benchmark.json').is_file()
    code, printed = run_tool(
        'benchmark.py', '--deploy', '--mode', 'train', cwd=tmp_path, check=False
    )
    assert code == 2 and '--deploy is for --mode infer' in printed
