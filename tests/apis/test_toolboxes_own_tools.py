"""Our configs under mmdet's and mmseg's own ``tools/train.py``, from another folder."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy_runs import NO_WORKERS, TINY_BACKBONE, TINY_DETECTOR

from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.engine import load_config, use_own_data


def run_own_tool(toolbox, config, *options, cwd):
    package = Path(importlib.util.find_spec(toolbox).origin).parent
    tool = package / '.mim' / 'tools' / 'train.py'
    if not tool.is_file():
        pytest.skip(f'this {toolbox} ships no tools/train.py')
    command = [tool, config, '--work-dir', 'wd', '--cfg-options', *options]
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, timeout=600, **output)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_mmdet(tmp_path):
    data = write_coco(tmp_path / 'shapes', 4, 2, (64, 64))
    use_own_data(load_config('retinanet_cyclemlp_demo'), data).dump(tmp_path / 'config.py')
    printed = run_own_tool(
        'mmdet', tmp_path / 'config.py', *TINY_DETECTOR, *TINY_BACKBONE, cwd=tmp_path
    )
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\].* loss: \d', printed)


@pytest.mark.slow
def test_mmseg_with_bn_for_sync_bn(tmp_path):
    data = write_ade20k(tmp_path / 'shapes', 4, 2, (64, 64))
    cfg = use_own_data(load_config('upernet_cyclemlp_b1_512x512_160k_ade20k'), data)
    cfg.dump(tmp_path / 'config.py')
    options = """
        train_dataloader.dataset.pipeline.3.scale=(128,64)
        train_dataloader.dataset.pipeline.4.crop_size=(64,64)
        val_dataloader.dataset.pipeline.1.scale=(128,64) model.data_preprocessor.size=(64,64)
        model.backbone.init_cfg=None train_cfg.max_iters=1 train_cfg.val_interval=1
        default_hooks.logger.interval=1"""
    options = *options.split(), *NO_WORKERS
    printed = run_own_tool('mmseg', tmp_path / 'config.py', *options, cwd=tmp_path)
    assert 'BN is used in place of SyncBN, as there is one process' in printed
    assert re.search(r'Iter\(train\) \[\s*1/\s*1\].* loss: \d', printed)
