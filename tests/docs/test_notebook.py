"""demo/demo.ipynb runs from top to bottom, in Jupyter's kernel."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

NOTEBOOK = ROOT / 'demo' / 'demo.ipynb'
RUN = f"""
import nbclient, nbformat
notebook = nbformat.read({str(NOTEBOOK)!r}, as_version=4)
nbformat.validate(notebook)
nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3').execute()
nbformat.write(notebook, 'run.ipynb')
"""


def run(*command, **options):
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run([sys.executable, *command], **streams, **options)
    return done.returncode, done.stdout[-3000:]


def test_it_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())['cells']
    assert len(cells) > 5
    assert not any(cell.get('outputs') or cell.get('execution_count') for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs(tmp_path):
    pip = ('-m', 'pip', 'install', '-q', '--no-compile', '-c', ROOT / 'constraints.txt')
    failed, out = run(*pip, '--target', tmp_path / 'jupyter', 'nbclient', 'ipykernel')
    if failed:
        pytest.skip(f'pip cannot install Jupyter here: {out}')
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path / 'jupyter')])
    )
    failed, out = run('-c', RUN, cwd=tmp_path, env=environment)
    assert not failed, out
    cells = json.loads((tmp_path / 'run.ipynb').read_text())['cells']
    outputs = [output for cell in cells for output in cell.get('outputs', ())]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 4
    assert (tmp_path / 'work_dirs' / 'notebook' / 'epoch_5.pth').is_file()
