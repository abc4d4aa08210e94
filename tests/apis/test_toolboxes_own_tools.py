"""Our configs under mmdet's and mmseg's own ``tools/train.py``, from another folder."""

import importlib.util
import re
from pathlib import Path

import pytest
from toy_runs import NO_WORKERS, TINY_BACKBONE, TINY_DETECTOR, run_tool

from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.engine import load_config, use_own_data

DET, SEG = 'retinanet_cyclemlp_demo', 'upernet_cyclemlp_b1_512x512_160k_ade20k'
SMALL = """
    train_dataloader.dataset.pipeline.3.scale=(128,64)
    train_dataloader.dataset.pipeline.4.crop_size=(64,64)
    val_dataloader.dataset.pipeline.1.scale=(128,64) model.data_preprocessor.size=(64,64)
    model.backbone.init_cfg=None train_cfg.max_iters=1 train_cfg.val_interval=1
    default_hooks.logger.interval=1"""
ONE_EPOCH = r'Epoch\(train\)\s+\[1\]\[2/2\]'
ONE_ITERATION = r'BN is used in place of SyncBN(?s:.*)Iter\(train\) \[\s*1/\s*1\]'
CASES = [
    ('mmdet', DET, write_coco, [*TINY_DETECTOR, *TINY_BACKBONE], ONE_EPOCH),
    ('mmseg', SEG, write_ade20k, [*SMALL.split(), *NO_WORKERS], ONE_ITERATION),
]


@pytest.mark.slow
@pytest.mark.parametrize('toolbox, name, write, options, said', CASES)
def test_training(toolbox, name, write, options, said, tmp_path):
    package = Path(importlib.util.find_spec(toolbox).origin).parent
    tool = package / '.mim' / 'tools' / 'train.py'
    if not tool.is_file():
        pytest.skip(f'this {toolbox} ships no tools/train.py')
    data = write(tmp_path / 'shapes', 4, 2, (64, 64))
    use_own_data(load_config(name), data).dump(tmp_path / 'config.py')
    arguments = ['config.py', '--work-dir', 'wd', '--cfg-options', *options]
    printed = run_tool(tool, *arguments, cwd=tmp_path, fresh=True)[1]
    assert re.search(rf'{said}.* loss: \d', printed)
