"""What a user got wrong: one or two sentences on the error stream, exit code 2, no traceback.

In-process, through the same ``run_tool`` that every script ends in; a few real scripts in
subprocesses are in the tests of each tool.
"""

import errno
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from paths import ROOT

from cyclemlp_mm.apis.arguments import TOOLS, parse
from cyclemlp_mm.apis.check import check
from cyclemlp_mm.apis.get_flops import get_flops
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.engine.training_config import VIS_BACKENDS
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.export import OPSETS, PARTS
from cyclemlp_mm.user_path import user_path
from cyclemlp_mm.weights.convert import TARGETS

#: A wrong command line of every tool, and what its message has to name.
WRONG = {
    'benchmark.py': (['--device', 'cuda', '--repeats', '1'], 'device cuda'),
    'check.py': (['no_such_config'], 'no_such_config'),
    'convert_weights.py': (['gone.pth', 'new.pth'], r'gone\.pth'),
    'export.py': (['no_such_config', 'gone.pth', 'new.onnx'], 'no_such_config'),
    'get_flops.py': (['--arch', 'b9'], 'b9'),
    'infer.py': (['no_such_config', 'gone.pth', 'gone.jpg'], 'no_such_config'),
    'make_demo_data.py': (['coco', 'data', '--size', '1', '1'], '32'),
    'model_zoo.py': (['--root', 'nowhere'], 'nowhere'),
    'test.py': (['no_such_config', 'gone.pth'], 'no_such_config'),
    'train.py': (['no_such_config'], 'no_such_config'),
    'visualize.py': (['features', 'no_such_config', 'gone.pth', 'gone.jpg'], 'no_such_config'),
}


def ending_of(script, arguments, monkeypatch, capsys):
    """What a script of ``tools/`` prints when it ends with 2."""
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / 'tools' / script), run_name='__main__')
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize('tool', WRONG)
def test_errors_are_short(tool, tmp_path, monkeypatch, capsys):
    arguments, names = WRONG[tool]
    if 'cuda' in arguments and torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    monkeypatch.chdir(tmp_path)
    message = ending_of(tool, arguments, monkeypatch, capsys)
    assert message.startswith('error: ') and re.search(names, message)
    sentences = re.findall(r'[.?!](?=\s+[A-Z]|\s*$)', message)
    assert len(message.splitlines()) == 1 and len(sentences) <= 2 and len(message) < 400, message
    assert list(tmp_path.iterdir()) == []  # and nothing was begun


def test_mistakes_of_the_command_line_cannot_control_the_terminal(monkeypatch, capsys):
    printed = ending_of('train.py', ['c', '--cfg-options', 'a\x1b[2J'], monkeypatch, capsys)
    assert r"--cfg-options: 'a\x1b[2J' is not KEY=VALUE" in printed
    printed = ending_of('infer.py', ['--gone\x1b[2J', 'a', 'b', 'c'], monkeypatch, capsys)
    assert r'\x1b' in printed and '\x1b' not in printed


@pytest.mark.parametrize(
    'tool, option, values',
    [
        ('export', '--part', PARTS),
        ('export', '--opset', OPSETS),
        ('convert_weights', '--to', TARGETS),
        ('train', '--vis', VIS_BACKENDS),
    ],
)
def test_choices_are_those_of_the_code(tool, option, values):
    """They stand in arguments.py a second time, which does not import what they are for."""
    assert list(TOOLS[tool][2][option]['choices']) == list(values)


def test_options_that_act_when_they_are_parsed(monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    parse('train', ['x', '--local-rank', '3'])
    assert os.environ['LOCAL_RANK'] == '3'
    parse('test', ['x', 'x.pth', '--local_rank=1'])
    assert os.environ['LOCAL_RANK'] == '3'


def raising(error):
    def tool():
        raise error

    return tool


@pytest.mark.parametrize(
    'error, said',
    [
        (OSError(errno.EROFS, 'Read-only file system', 'a/b.pth'), 'error: a/b.pth cannot be'),
        (PermissionError(errno.EACCES, 'Permission denied', 'a'), 'error: a cannot.*denied'),
        (OSError(errno.ENOSPC, 'No space left on device'), 'error: No space .*make room'),
    ],
)
def test_files_that_the_system_refuses(error, said, capsys):
    with pytest.raises(SystemExit) as caught:
        run_tool(raising(error))
    assert caught.value.code == 2
    assert re.match(said, capsys.readouterr().err)


def test_an_error_without_a_file_keeps_its_traceback():
    for error in (ConnectionResetError(errno.ECONNRESET, 'reset by peer'), ZeroDivisionError()):
        with pytest.raises(type(error)):
            run_tool(raising(error))


#: Errors of a process among others: of its partner's end, or with a cause of its own.
PARTNER_GONE = '[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4'
CAUSES = [
    ConnectionRefusedError(errno.ECONNREFUSED, 'Connection refused'),  # a logger's server
    OSError('HTTPConnectionPool(host=logs): Connection refused'),
    RuntimeError('the database says: Connection reset by peer'),
    RuntimeError('The client socket has timed out after 600s: Connection refused'),
    BrokenPipeError(errno.EPIPE, 'Broken pipe'),
]


@pytest.mark.parametrize('error', CAUSES, ids=str)
def test_the_cause_among_several_processes_keeps_its_traceback(error, monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setattr('os._exit', lambda code: pytest.fail('the cause was left out'))

    with pytest.raises(type(error)):  # which Python prints with its traceback
        run_tool(raising(error))
    assert f'unexpected {type(error).__name__}: ' in capsys.readouterr().err


def test_a_process_whose_partner_ended_says_what_it_saw(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setattr('os._exit', sys.exit)

    with pytest.raises(SystemExit) as caught:
        run_tool(raising(RuntimeError(PARTNER_GONE)))
    assert caught.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('process 1: stopped') and PARTNER_GONE in line


BROKEN_MODULE = """
import torch
from mmengine.registry import MODELS

@MODELS.register_module(force=True)
class BrokenBackbone(torch.nn.Module):
    def __init__(self, width=4, init_cfg=None):
        super().__init__()
        {line}

    def forward(self, x):
        return x
"""
CONFIG = """
_base_ = '{base}'
custom_imports = dict(imports=['{module}'])
model = dict(backbone=dict(_delete_=True, type='BrokenBackbone'{settings}))
"""


def broken_config(folder, monkeypatch, line='pass', settings='', module=None):
    """A config whose backbone is in a module of the user's, of another name each time."""
    name = f'backbone_{folder.parent.name}_{folder.name}'.replace('-', '_')
    (folder / f'{name}.py').write_text(module or BROKEN_MODULE.format(line=line))
    monkeypatch.syspath_prepend(folder)
    config = folder / 'own.py'
    base = ROOT / 'configs' / 'retinanet_cyclemlp_demo.py'
    config.write_text(CONFIG.format(base=base, module=name, settings=settings))
    return config, f'{name}.py'


def message_of(tool, config, capsys):
    with pytest.raises(SystemExit) as caught:
        run_tool(lambda: tool([str(config)]))
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    'tool, line',
    [
        (check, 'self.conv = torch.nn.Conv2d(width)'),
        (check, "raise TypeError('not yet')"),
        (check, 'self.name = dict()["name"]'),
        (get_flops, 'self.blocks = width.blocks'),
        (get_flops, 'assert width == 5'),
        (get_flops, 'self.norm = torch.nn.LayerNorm("x")'),
    ],
)
def test_code_of_a_new_backbone_keeps_its_traceback(tool, line, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmdet')
    config, module = broken_config(tmp_path, monkeypatch, line)
    printed = message_of(tool, config, capsys)
    assert re.match(rf'error: config .*own.py: the model cannot .*{module}, line 9', printed)
    assert 'Traceback' in printed and line in printed.split('Traceback', 1)[1]


@pytest.mark.parametrize(
    'line, settings, said',
    [
        ('pass', ', widht=4', "unexpected keyword argument 'widht'"),
        ("raise ValueError('width is odd')", '', 'width is odd'),
    ],
)
def test_settings_of_a_new_backbone_are_a_sentence(
    line, settings, said, tmp_path, monkeypatch, capsys
):
    pytest.importorskip('mmdet')
    config, _ = broken_config(tmp_path, monkeypatch, line, settings)
    printed = message_of(get_flops, config, capsys)
    assert said in printed and 'Traceback' not in printed


@pytest.mark.parametrize(
    'module, error',
    [
        ('import torch\n1 / 0\n', 'Zero'),
        ('def f(:\n', 'Syntax'),
        ('from torch import nothing_of_that_name\n', 'Import'),
    ],
)
def test_a_module_of_a_config_that_fails(module, error, tmp_path, monkeypatch, capsys):
    config, name = broken_config(tmp_path, monkeypatch, module=module)
    printed = message_of(check, config, capsys)
    assert re.match(rf'error: config .*own.py.*{name}, line [12].*{error}', printed)
    assert 'Traceback' in printed and module.splitlines()[-1] in printed.split('Traceback', 1)[1]


@pytest.mark.parametrize(
    'text, line, said',
    [
        ('a = 1\nb = a + "x"\n', 2, 'TypeError'),
        ('a = (1\n', 1, 'SyntaxError'),
        ('def f():\n    return undefined\nb = f()\n', 2, 'NameError'),
    ],
)
def test_an_error_in_a_config_or_its_base_names_file_and_line(text, line, said, tmp_path, capsys):
    (tmp_path / 'base.py').write_text(text)
    (tmp_path / 'child.py').write_text("_base_ = 'base.py'\n")
    for config in ('base.py', 'child.py'):
        printed = message_of(check, tmp_path / config, capsys)
        assert re.match(rf'error: config .*base\.py cannot be read: {said}.*line {line}\)', printed)
        assert 'Traceback' not in printed


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


DEMO, TOO_LONG = 'retinanet_cyclemlp_demo', 'a' * 300


@pytest.mark.parametrize('path', ['~no_user/x', TOO_LONG, 'd/' * 3000 + 'x'], ids=['~', 'a', 'd'])
@pytest.mark.parametrize(
    'arguments',
    [
        ['train.py', DEMO, '--data', 'PATH'],
        ['train.py', 'PATH'],
        ['check.py', DEMO, '--data', 'PATH'],
        ['train.py', DEMO, '--work-dir', 'PATH', '--skip-check'],
        ['test.py', 'PATH', 'x.pth'],
        ['train.py', DEMO, '--resume', 'PATH', '--skip-check'],
        ['get_flops.py', 'PATH'],
        ['convert_weights.py', 'PATH', 'out.pth'],
        ['convert_weights.py', 'x.pth', 'PATH'],
        ['export.py', DEMO, 'PATH', 'out.onnx'],
        ['infer.py', DEMO, 'x.pth', 'PATH'],
        ['web.py', '--model', DEMO, 'PATH'],
    ],
    ids=' '.join,
)
def test_paths_that_cannot_be(arguments, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tool, *arguments = (path if part == 'PATH' else part for part in arguments)
    printed = ending_of(tool, arguments, monkeypatch, capsys)
    assert printed.splitlines()[-1].startswith('error: ')
    assert list(tmp_path.iterdir()) == []


def test_a_path_of_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert user_path('~/a') == tmp_path / 'a' and user_path('a/~') == Path('a/~')
    with pytest.raises(MissingFileError, match=r'no home folder ~nobody_here; .*give \./~nobody_'):
        user_path('~nobody_here/a')


def test_a_current_folder_that_was_removed(tmp_path):
    folder = tmp_path / 'gone'
    folder.mkdir()
    script = f'cd {folder} && rmdir {folder} && {sys.executable} {ROOT}/tools/check.py {DEMO}'
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(['bash', '-c', script], stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr == 'error: the current folder was removed: change to another one\n'


def test_no_folder_for_temporary_files(monkeypatch, capsys):
    error = FileNotFoundError(errno.ENOENT, 'No usable temporary directory found in [/tmp]')
    monkeypatch.setattr(tempfile, 'gettempdir', raising(error))
    with pytest.raises(SystemExit) as caught:
        run_tool(lambda: check([DEMO]))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith('error: No usable temporary') and 'set TMPDIR to a folder' in said
