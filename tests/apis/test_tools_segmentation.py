"""tools/train.py and tools/test.py on a segmentor, with the label conventions of own data."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from toy_runs import TINY_SEGMENTOR, run_tool, train_toy

from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets.shapes import write_ade20k
from cyclemlp_mm.errors import UserError

CONFIG = 'fpn_cyclemlp_b1_256x256_600i_small'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_ade20k(tmp_path_factory.mktemp('data') / 'shapes', 4, 2, (64, 64))


def test_trains_evaluates_and_tests(data, tmp_path):
    printed = train_toy(CONFIG, data, options=TINY_SEGMENTOR, cwd=tmp_path)
    assert 'BN is used in place of SyncBN' in printed
    assert re.search(r'Iter\(train\) \[2/2\].* loss: \d', printed)
    assert 'star' in printed  # the class-wise table
    training = re.search(r'mIoU: ([\d.]+)', printed)[1]
    # Nothing but figures: mmengine shows all of a run's notes whose names begin with 'val'.
    [figures] = re.findall(r'Iter\(val\) \[2/2\]\s+(aAcc.*)', printed)
    assert set(re.findall(r'(\w+):', figures)) == {'aAcc', 'mIoU', 'mAcc', 'data_time', 'time'}
    model = [f'wd/{CONFIG}.py', 'wd/iter_2.pth']
    _, printed = run_tool('test.py', *model, '--show-dir', 'drawn', cwd=tmp_path)
    assert re.search(r'mIoU: ([\d.]+)', printed)[1] == training
    assert len(list((tmp_path / 'drawn').glob('*.png'))) == 2
    assert re.search('^pictures drawn$', printed, re.MULTILINE)


def test_labels_counted_from_zero_with_a_void_class(data, tmp_path, monkeypatch):
    own = shutil.copytree(data, tmp_path / 'own')
    for path in own.glob('annotations/*/*.png'):
        labels = np.asarray(Image.open(path)).astype(int)
        Image.fromarray(np.where(labels == 0, 11, labels - 1).astype(np.uint8)).save(path)
    printed = train_toy(CONFIG, own, '--ignore-label', 11, options=TINY_SEGMENTOR, cwd=tmp_path)
    assert 'mIoU' in printed
    monkeypatch.chdir(tmp_path)
    arguments = ['--data', str(own), '--ignore-label', '12', '--cfg-options', *TINY_SEGMENTOR]
    with pytest.raises(UserError) as caught:
        train([CONFIG, *arguments])
    said = r'labels 11 name no class.*e\.g\. 11 in ADE_train_\d+\.png'
    assert re.search(said, str(caught.value), re.DOTALL) and '--ignore-label' in str(caught.value)
