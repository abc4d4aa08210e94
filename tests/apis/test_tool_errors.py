"""What a user got wrong: one or two sentences on the error stream, exit code 2, no traceback.

In-process, through the same ``run_tool`` that every script ends in; a few real scripts in
subprocesses are in the tests of each tool.
"""

import errno
import re
import runpy
import sys

import pytest
from paths import ROOT

from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.errors import UserError

#: A wrong command line of every tool, and what its message has to name.
WRONG = {
    'benchmark.py': (['--device', 'cuda', '--repeats', '1'], 'device cuda'),
    'check.py': (['no_such_config'], 'no_such_config'),
    'convert_weights.py': (['gone.pth', 'new.pth'], r'gone\.pth'),
    'export.py': (['no_such_config', 'gone.pth', 'new.onnx'], 'no_such_config'),
    'get_flops.py': (['--arch', 'b9'], 'b9'),
    'infer.py': (['no_such_config', 'gone.pth', 'gone.jpg'], r'gone\.jpg'),
    'make_demo_data.py': (['coco', 'data', '--size', '1', '1'], '32'),
    'model_zoo.py': (['--root', 'nowhere'], 'nowhere'),
    'test.py': (['no_such_config', 'gone.pth'], 'no_such_config'),
    'train.py': (['no_such_config'], 'no_such_config'),
    'visualize.py': (['features', 'no_such_config', 'gone.pth', 'gone.jpg'], 'no_such_config'),
}


@pytest.mark.parametrize('tool', WRONG)
def test_errors_are_short(tool, tmp_path, monkeypatch, capsys):
    import torch

    arguments, names = WRONG[tool]
    if 'cuda' in arguments and torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and re.search(names, message)
    sentences = re.findall(r'[.?!](?=\s+[A-Z]|\s*$)', message)
    assert len(message.splitlines()) == 1 and len(sentences) <= 2 and len(message) < 400, message
    assert list(tmp_path.iterdir()) == []  # and nothing was begun


@pytest.mark.parametrize(
    'arguments',
    [
        ['infer.py', 'c', 'c.pth', 'a.jpg'], ['export.py', 'c', 'c.pth', 'c.onnx'],
        ['get_flops.py', 'c'], ['visualize.py', 'field', 'c'],
        ['visualize.py', 'gallery', 'c', 'c.pth'],
    ],
)  # fmt: skip
def test_settings_that_are_none(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [*arguments, '--cfg-options', 'foo'])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / 'tools' / arguments[0]), run_name='__main__')
    assert caught.value.code == 2
    assert "--cfg-options: ['foo'] are not all KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    'error, said',
    [
        (OSError(errno.EROFS, 'Read-only file system', 'a/b.pth'), 'error: a/b.pth cannot be'),
        (PermissionError(errno.EACCES, 'Permission denied', 'a'), 'error: a cannot.*denied'),
        (OSError(errno.ENOSPC, 'No space left on device'), 'error: No space .*make room'),
    ],
)
def test_files_that_the_system_refuses(error, said, capsys):
    def tool():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_tool(tool)
    assert caught.value.code == 2
    assert re.match(said, capsys.readouterr().err)


def test_an_error_without_a_file_keeps_its_traceback():
    def tool():
        raise ConnectionResetError(errno.ECONNRESET, 'Connection reset by peer')

    with pytest.raises(ConnectionResetError):
        run_tool(tool)


def test_a_place_is_looked_at_without_a_trace(tmp_path):
    (tmp_path / 'old.txt').write_text('old')
    check_writable(tmp_path / 'new' / 'deep' / 'file.txt', '--out')
    check_writable(tmp_path / 'old.txt', '--out')
    assert [p.name for p in tmp_path.iterdir()] == ['old.txt']
    assert (tmp_path / 'old.txt').read_text() == 'old'
    with pytest.raises(UserError, match='is a folder: name a file in it'):
        check_writable(tmp_path, '--out')
    with pytest.raises(UserError, match=r'--out .*deep cannot be written \(Not a directory\)'):
        check_writable(tmp_path / 'old.txt' / 'deep', '--out', is_folder=True)


def test_every_tool_is_here_or_has_its_own_way():
    """demo.py has nothing to get wrong; the others have tests of their own."""
    tools = {path.name for path in (ROOT / 'tools').glob('*.py')}
    own = {'demo.py', 'doctor.py', 'setup_env.py', 'web.py'}
    assert set(WRONG) | own == tools


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_tool(lambda: 1 / 0)
