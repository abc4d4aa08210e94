"""Which lineage of OpenMMLab is installed, and what is said where both are in one folder."""

import re
import sys

import pytest

import doctor
from cyclemlp_mm import openmmlab


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes an environment that holds the named distributions, as far as their metadata goes."""

    def make(*pins):
        for name, version in (pin.split('==') for pin in pins):
            folder = tmp_path / 'site' / f'{name.replace("-", "_")}-{version}.dist-info'
            folder.mkdir(parents=True)
            (folder / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
        monkeypatch.setattr(sys, 'path', [str(tmp_path / 'site'), *sys.path])

    monkeypatch.setattr(sys, 'path', [])
    return make


@pytest.mark.parametrize(
    'pins, lineage, extra',
    [
        ((), 'none', "'cyclemlp_mm[det]'"),
        (('onedl-mmengine==0.10.12', 'onedl-mmcv==2.3.6'), 'maintained', "'cyclemlp_mm[det]'"),
        (('mmengine==0.10.7', 'mmcv-lite==2.1.0'), 'original', "'cyclemlp_mm[openmmlab-det]'"),
        (('onedl-mmengine==0.10.12', 'mmdet==3.3.0'), 'mixed', "'cyclemlp_mm[det]'"),
    ],
)
def test_lineage(pins, lineage, extra, install):
    install(*pins)
    assert openmmlab.lineage() == lineage
    assert openmmlab.requirement('det') == extra
    assert openmmlab.conflict() is None


def test_both_over_each_other(install, monkeypatch, capsys):
    """The warning and the doctor name both, and the commands for either lineage."""
    install('mmengine==0.10.7', 'onedl-mmengine==0.10.12', 'mmcv-lite==2.1.0', 'onedl-mmcv==2.3.6')
    with pytest.warns(UserWarning, match='installed over each other') as caught:
        openmmlab.warn_of_conflict()
    monkeypatch.setattr(doctor, 'check_parts', lambda requirement: [])
    monkeypatch.setattr(doctor, 'check_gpu', list)
    assert doctor.main([]) == 1
    for text in (str(caught[0].message), capsys.readouterr().out):
        assert 'onedl-mmengine 0.10.12 and mmengine 0.10.7' in text
        assert '`pip uninstall -y onedl-mmengine mmengine onedl-mmcv mmcv-lite`' in text
        command = '`pip install --no-deps --no-build-isolation'
        assert f'{command} mmengine==0.10.7 mmcv-lite==2.1.0` (the original packages)' in text
        assert f'{command} onedl-mmengine==0.10.12 onedl-mmcv==2.3.6` (the maintained' in text


@pytest.mark.parametrize(
    'pins, says',
    [
        ((), r'not installed: run `pip install .cyclemlp_mm\[det\].*`pip install onedl-mmengine`'),
        (('mmengine==0.10.7',), r'incomplete \(gone\).*--force-reinstall --no-deps mmengine==0'),
    ],
)
def test_without_mmengine(pins, says, install):
    install(*pins)
    text = openmmlab.how_to_get_mmengine(ImportError('gone'))
    assert re.search(says, text), text
