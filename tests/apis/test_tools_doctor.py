"""tools/doctor.py: of a sound installation, and of broken ones."""

import os
import runpy
import subprocess
import sys

import pytest
from paths import ROOT

DOCTOR = ROOT / 'tools' / 'doctor.py'


@pytest.mark.slow
def test_a_sound_installation_and_a_broken_part(tmp_path):
    """mmcv without compiled ops; what needs mmcv breaks with it, what does not is still seen."""

    def doctor():
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        command, environment = [sys.executable, str(DOCTOR)], dict(os.environ, PYTHONPATH=path)
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.stderr == ''
        return done.returncode, done.stdout

    code, printed = doctor()
    assert code == 0 and printed.endswith('doctor: no problems\n')
    assert "mmcv's ops" in printed and 'BROKEN' not in printed

    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('__version__ = "2.1.0"\n')
    (package / 'ops.py').write_text('raise ModuleNotFoundError("No module named \'mmcv._ext\'")\n')
    code, printed = doctor()
    assert code == 1
    assert "mmcv's ops    BROKEN: ModuleNotFoundError: No module named 'mmcv._ext'" in printed
    assert "problem: mmcv's ops does not import\n   fix: pip install 'setuptools" in printed
    assert 'BROKEN' not in next(line for line in printed.splitlines() if line.startswith('torch '))


def test_a_toolbox_whose_models_do_not_import(tmp_path):
    """As with transformers 5 beside it: the package itself imports."""
    package = tmp_path / 'mmdet'
    (package / 'models').mkdir(parents=True)
    (package / '__init__.py').write_text('__version__ = "3"\n')
    for part in ('apis', 'datasets', 'engine', 'evaluation', 'visualization'):
        (package / f'{part}.py').write_text('')
    (package / 'models' / '__init__.py').write_text('class A(None):\n    pass\n')
    module = runpy.run_path(str(DOCTOR))
    path = f'import sys; sys.path.insert(0, {str(tmp_path)!r})'
    failed, last, out = module['run_python'](f'{path}; {module["PARTS"]["mmdet"][0]}')
    assert failed and last == 'TypeError: NoneType takes no arguments'
    assert module['hint'](out) == "pip install 'transformers<5'"
