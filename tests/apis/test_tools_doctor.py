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
    command = [sys.executable, str(DOCTOR)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.stderr == ''
    return done.returncode, done.stdout


@pytest.mark.slow
def test_nothing_is_wrong(tmp_path):
    code, printed = doctor(tmp_path, tmp_path)
    assert code == 0 and printed.endswith('doctor: no problems\n')
    assert "mmcv's ops" in printed and 'BROKEN' not in printed


@pytest.mark.slow
def test_a_broken_part_is_named_and_mended(tmp_path):
    """mmcv without compiled ops; what needs mmcv breaks with it, what does not is still seen."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('__version__ = "2.1.0"\n')
    (package / 'ops.py').write_text('raise ModuleNotFoundError("No module named \'mmcv._ext\'")\n')
    code, printed = doctor(tmp_path, tmp_path)
    assert code == 1
    assert "mmcv's ops    BROKEN: ModuleNotFoundError: No module named 'mmcv._ext'" in printed
    assert "problem: mmcv's ops does not import\n   fix: pip install 'setuptools" in printed
    assert 'BROKEN' not in next(line for line in printed.splitlines() if line.startswith('torch '))


@pytest.mark.parametrize('name', ['mmdet', 'mmseg'])
def test_a_toolbox_whose_models_do_not_import(name, tmp_path):
    """As with transformers 5 beside it: the package itself imports."""
    package = tmp_path / name
    (package / 'models').mkdir(parents=True)
    (package / '__init__.py').write_text('__version__ = "3"\n')
    for part in ('apis', 'datasets', 'engine', 'evaluation', 'visualization'):
        (package / f'{part}.py').write_text('')
    (package / 'models' / '__init__.py').write_text('class A(None):\n    pass\n')
    module = runpy.run_path(str(DOCTOR))
    path = f'import sys; sys.path.insert(0, {str(tmp_path)!r})'
    failed, last, out = module['run_python'](f'{path}; {module["PARTS"][name][0]}')
    assert failed and last == 'TypeError: NoneType takes no arguments'
    assert module['hint'](out) == "pip install 'transformers<5'"
