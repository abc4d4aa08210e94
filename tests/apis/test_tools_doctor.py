"""tools/doctor.py: of a sound installation, and of broken ones."""

import os
import runpy
import subprocess
import sys

import pytest
from paths import ROOT

pytest.importorskip('mmdet')
DOCTOR = ROOT / 'tools' / 'doctor.py'


def doctor(first_on_path, cwd):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(first_on_path), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, str(DOCTOR)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ''
    return done.returncode, done.stdout


def test_nothing_is_wrong(tmp_path):
    code, printed = doctor(tmp_path, tmp_path)
    assert code == 0 and printed.endswith('doctor: no problems\n')
    assert "mmcv's ops" in printed and 'BROKEN' not in printed


def test_a_broken_part_is_named_and_mended(tmp_path):
    """mmcv without compiled ops; what needs mmcv breaks with it, what does not is still seen."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('__version__ = "2.1.0"\n')
    (package / 'ops.py').write_text("raise ModuleNotFoundError(\"No module named 'mmcv._ext'\")\n")
    code, printed = doctor(tmp_path, tmp_path)
    assert code == 1
    assert "mmcv's ops    BROKEN: ModuleNotFoundError: No module named 'mmcv._ext'" in printed
    assert "problem: mmcv's ops does not import\n   mend: pip install 'setuptools" in printed
    assert 'BROKEN' not in next(line for line in printed.splitlines() if line.startswith('torch '))


def test_two_lineages_in_one_folder():
    check = runpy.run_path(str(DOCTOR))['check_distributions']
    [(what, mend)] = check({'mmcv', 'onedl-mmcv', 'torch'})
    assert what.startswith('onedl-mmcv and mmcv are both installed')
    assert mend == 'pip uninstall -y onedl-mmcv mmcv && pip install onedl-mmcv'
    assert check({'mmcv', 'mmdet'}) == []
