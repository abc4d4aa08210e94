"""tools/train.py and tools/test.py on a segmentor, with the label conventions of own data."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from toy_runs import TINY_SEGMENTOR as TINY
from toy_runs import run_tool

from cyclemlp_mm.datasets.shapes import write_ade20k

CONFIG = 'fpn_cyclemlp_b1_256x256_600i_small'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_ade20k(tmp_path_factory.mktemp('data') / 'shapes', 4, 2, (64, 64))


def test_trains_evaluates_and_tests(data, tmp_path):
    _, printed = run_tool(
        'train.py', CONFIG, '--data', data, '--work-dir', 'wd', '--cfg-options', *TINY, cwd=tmp_path
    )
    assert 'BN is used in place of SyncBN' in printed
    assert re.search(r'Iter\(train\) \[2/2\].* loss: \d', printed)
    assert 'star' in printed  # the class-wise table
    training = re.search(r'mIoU: ([\d.]+)', printed)[1]
    # Nothing but figures: mmengine shows all of a run's notes whose names begin with 'val'.
    [figures] = re.findall(r'Iter\(val\) \[2/2\]\s+(aAcc.*)', printed)
    assert set(re.findall(r'(\w+):', figures)) == {'aAcc', 'mIoU', 'mAcc', 'data_time', 'time'}
    _, printed = run_tool(
        'test.py',
        tmp_path / 'wd' / f'{CONFIG}.py',
        tmp_path / 'wd' / 'iter_2.pth',
        '--show-dir',
        'drawn',
        cwd=tmp_path,
    )
    assert re.search(r'mIoU: ([\d.]+)', printed)[1] == training
    assert len(list((tmp_path / 'drawn').glob('*.png'))) == 2
    assert re.search('^pictures drawn$', printed, re.MULTILINE)


def test_labels_counted_from_zero_with_a_void_class(data, tmp_path):
    own = shutil.copytree(data, tmp_path / 'own')
    for path in own.glob('annotations/*/*.png'):
        labels = np.asarray(Image.open(path)).astype(int)
        Image.fromarray(np.where(labels == 0, 11, labels - 1).astype(np.uint8)).save(path)
    _, printed = run_tool(
        'train.py',
        CONFIG,
        '--data',
        own,
        '--ignore-label',
        11,
        '--work-dir',
        'wd',
        '--cfg-options',
        *TINY,
        cwd=tmp_path,
    )
    assert 'mIoU' in printed
    code, printed = run_tool(
        'train.py',
        CONFIG,
        '--data',
        own,
        '--ignore-label',
        12,
        '--work-dir',
        'wd2',
        '--cfg-options',
        *TINY,
        cwd=tmp_path,
        check=False,
    )
    assert code == 2
    said = r'error: .*labels 11 name no class.*e\.g\. 11 in ADE_train_\d+\.png'
    assert re.search(said, printed, re.DOTALL)
    assert '--ignore-label' in printed
