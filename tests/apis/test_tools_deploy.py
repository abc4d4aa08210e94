"""``--deploy``: the tools' results are those of the model as trained."""

import re

import pytest
from toy_runs import TINY_SEGMENTOR, run_tool, train_toy

from cyclemlp_mm.datasets.shapes import write_ade20k, write_image_folders

pytest.importorskip('mmseg')


def evaluate_deployed(config, checkpoint, folder):
    model = [f'wd/{config}.py', f'wd/{checkpoint}']
    _, printed = run_tool('test.py', *model, '--deploy', cwd=folder)
    assert 'what can be folded was folded' in printed
    # What test.py writes into the work dir asks the next run again.
    assert 'DeployModel' not in (folder / model[0]).read_text()
    return printed


def test_deploy_evaluates_alike(tmp_path):
    config = 'fpn_mpvit_tiny_256x256_600i_small'
    data = write_ade20k(tmp_path / 'shapes', 4, 2, (64, 64))
    printed = train_toy(config, data, options=TINY_SEGMENTOR, cwd=tmp_path)
    trained = re.search(r'mIoU: ([\d.]+)', printed)[1]
    printed = evaluate_deployed(config, 'iter_2.pth', tmp_path)
    assert re.search(r'mIoU: ([\d.]+)', printed)[1] == trained


@pytest.mark.timeout(600)
def test_deploy_evaluates_averaged_weights_alike(tmp_path):
    """EMAHook swaps weights before and after the test; the data have fewer than five classes."""
    pytest.importorskip('mmpretrain')
    config = 'mpvit_tiny_in1k'
    data = write_image_folders(tmp_path / 'shapes', 8, 4, (64, 64))
    options = [option for option in TINY_SEGMENTOR if 'workers' in option]
    options += ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=4']
    printed = train_toy(config, data, options=options, cwd=tmp_path)
    [trained] = re.findall(r'Epoch\(val\).*accuracy/top1: ([\d.]+)', printed)
    printed = evaluate_deployed(config, 'epoch_1.pth', tmp_path)
    assert re.search(r'Epoch\(test\).*accuracy/top1: ([\d.]+)', printed)[1] == trained
    assert 'top5' not in printed


def test_the_benchmark_knows_mpvit_and_deploy(tmp_path):
    arguments = ['--arch', 'mpvit_tiny', 't', '--size', '1x64x64', '--deploy', '--forms']
    arguments += ['--repeats', '2', '--out', 'out']
    _, printed = run_tool('benchmark.py', *arguments, cwd=tmp_path)
    assert re.search(r'ours\s+mpvit_tiny', printed) and (tmp_path / 'out/benchmark.json').is_file()
