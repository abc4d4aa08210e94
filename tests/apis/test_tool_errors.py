"""What a user got wrong: one or two sentences on the error stream, exit code 2, no traceback.

In-process, through the same ``run_tool`` that every script ends in; a few real scripts in
subprocesses are in the tests of each tool.
"""

import errno
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import VISBACKENDS
from paths import ROOT

from cyclemlp_mm.apis.arguments import BACKENDS, OPTIONS, parse, parser_of
from cyclemlp_mm.apis.check import check
from cyclemlp_mm.apis.get_flops import get_flops
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.export import OPSETS, PARTS
from cyclemlp_mm.user_path import user_path
from cyclemlp_mm.weights.convert import TARGETS

DEMO = 'retinanet_cyclemlp_demo'
#: A wrong command line of every tool, and what its message has to name. demo.py has nothing to get
#: wrong; doctor.py, setup_env.py and web.py have tests of their own.
WRONG = {
    'benchmark.py --device cuda --repeats 1': 'device cuda',
    'check.py no_such_config': 'no_such_config',
    'convert_weights.py gone.pth new.pth': r'gone\.pth',
    'estimate.py no_such_config': 'no_such_config',
    'export.py no_such_config gone.pth new.onnx': 'no_such_config',
    'get_flops.py --arch b9': 'b9',
    'infer.py no_such_config gone.pth gone.jpg': 'no_such_config',
    'make_demo_data.py coco data --size 1 1': '32',
    'model_zoo.py --root nowhere': 'nowhere',
    'run_exported.py gone.onnx gone.jpg': r'gone\.jpg: no such file',
    'test.py no_such_config gone.pth': 'no_such_config',
    'train.py no_such_config': 'no_such_config',
    'visualize.py features no_such_config gone.pth gone.jpg': 'no_such_config',
}


@pytest.fixture
def message_of(capsys):
    """What a call prints to the error stream when it ends with 2."""

    def end(call, *arguments, code=2, **options):
        with pytest.raises(SystemExit) as caught:
            call(*arguments, **options)
        assert caught.value.code == code
        return capsys.readouterr().err

    return end


@pytest.fixture
def message_of_script(message_of, monkeypatch):
    def end(script, *arguments):
        monkeypatch.setattr(sys, 'argv', [script, *arguments])
        return message_of(runpy.run_path, str(ROOT / 'tools' / script), run_name='__main__')

    return end


def raising(error):
    def tool(*_):
        raise error

    return tool


@pytest.mark.parametrize('line', WRONG)
def test_errors_are_short(line, tmp_path, monkeypatch, message_of_script):
    if 'cuda' in line and torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    monkeypatch.chdir(tmp_path)
    message = message_of_script(*line.split())
    assert message.startswith('error: ') and re.search(WRONG[line], message)
    sentences = re.findall(r'[.?!](?=\s+[A-Z]|\s*$)', message)
    assert len(message.splitlines()) == 1 and len(sentences) <= 2 and len(message) < 400, message
    assert list(tmp_path.iterdir()) == []  # and nothing was begun


def test_every_tool_is_here():
    own = {'demo.py', 'doctor.py', 'setup_env.py', 'web.py'}
    tools = {path.name for path in (ROOT / 'tools').glob('*.py')}
    assert {line.split()[0] for line in WRONG} | own == tools


def test_mistakes_of_the_command_line_cannot_control_the_terminal(message_of_script):
    printed = message_of_script('train.py', 'c', '--cfg-options', 'a\x1b[2J')
    assert r"--cfg-options: 'a\x1b[2J' is not KEY=VALUE" in printed


def test_choices_are_those_of_the_code():
    """They stand in arguments.py a second time, which does not import what they are for."""
    choices = {
        ('export', '--part'): PARTS,
        ('export', '--opset'): OPSETS,
        ('convert_weights', '--to'): TARGETS,
    }
    for (tool, option), values in choices.items():
        assert list(OPTIONS[tool][option]['choices']) == list(values)
    backends = {kind.removesuffix('VisBackend').lower() for kind in VISBACKENDS.module_dict}
    assert {*BACKENDS, 'local'} == backends


def test_help_is_short():
    text = parser_of('train').format_help()
    assert '--vis NAME [NAME ...]' in text and text.count('clearml') == 1
    for tool in ('infer', 'get_flops'):  # they have no --data
        assert '--data' not in parser_of(tool).format_help()


@pytest.mark.parametrize('what', ['staircase', 'field', 'features', 'curves', 'gallery'])
def test_help_of_what_visualize_draws(what, capsys):
    with pytest.raises(SystemExit):
        parse('visualize', [what, '--help'])
    text = capsys.readouterr().out
    assert '\nDraw the ' in text and f'examples:\n  tools/visualize.py {what} ' in text


def test_options_that_act_when_they_are_parsed(monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    for arguments in (['x', '--local-rank', '3'], ['x', '--local_rank=1']):  # the first one stays
        parse('train', arguments)
        assert os.environ['LOCAL_RANK'] == '3'


@pytest.mark.parametrize(
    'error, said',
    [
        (OSError(errno.EROFS, 'Read-only file system', 'a/b.pth'), 'error: a/b.pth cannot be'),
        (PermissionError(errno.EACCES, 'Permission denied', 'a'), 'error: a cannot.*denied'),
        (OSError(errno.ENOSPC, 'No space left on device'), 'error: No space .*make room'),
    ],
)
def test_files_that_the_system_refuses(error, said, message_of):
    assert re.match(said, message_of(run_tool, raising(error)))


#: Errors of a process among others with a cause of its own.
CAUSES = [
    ConnectionRefusedError(errno.ECONNREFUSED, 'Connection refused'),  # a logger's server
    OSError('HTTPConnectionPool(host=logs): Connection refused'),
    RuntimeError('the database says: Connection reset by peer'),
    RuntimeError('The client socket has timed out after 600s: Connection refused'),
    BrokenPipeError(errno.EPIPE, 'Broken pipe'),
    ZeroDivisionError('deep inside'),
]


@pytest.mark.parametrize('error', CAUSES, ids=str)
@pytest.mark.parametrize('processes', '12')
def test_the_cause_among_several_processes_keeps_its_traceback(
    error, processes, monkeypatch, capsys
):
    monkeypatch.setenv('WORLD_SIZE', processes)
    monkeypatch.setattr('os._exit', lambda code: pytest.fail('the cause was left out'))
    with pytest.raises(type(error)):  # which Python prints with its traceback
        run_tool(raising(error))
    assert f'error: unexpected {type(error).__name__}: ' in capsys.readouterr().err


def test_a_process_whose_partner_ended_says_what_it_saw(monkeypatch, message_of):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setattr('os._exit', sys.exit)
    error = '[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4'
    [line] = message_of(run_tool, raising(RuntimeError(error)), code=1).splitlines()
    assert line.startswith('process 1: stopped') and error in line


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


@pytest.fixture
def message_of_config(tmp_path, monkeypatch, message_of):
    """Of a config whose backbone is in a module of the user's, of another name each time."""
    pytest.importorskip('mmdet')

    def end(tool, module, settings=''):
        name = f'backbone_{tmp_path.parent.name}_{tmp_path.name}'.replace('-', '_')
        (tmp_path / f'{name}.py').write_text(module)
        monkeypatch.syspath_prepend(tmp_path)
        base = ROOT / 'configs' / f'{DEMO}.py'
        text = CONFIG.format(base=base, module=name, settings=settings)
        (tmp_path / 'own.py').write_text(text)
        return message_of(run_tool, lambda: tool([str(tmp_path / 'own.py')])), f'{name}.py'

    return end


@pytest.mark.parametrize(
    'tool, line',
    [
        (check, 'self.conv = torch.nn.Conv2d(width)'),
        (check, "raise TypeError('not yet')"),
        (get_flops, 'self.blocks = width.blocks'),
        (get_flops, 'assert width == 5'),
        (get_flops, 'self.norm = torch.nn.LayerNorm("x")'),
    ],
)
def test_code_of_a_new_backbone_keeps_its_traceback(tool, line, message_of_config):
    printed, module = message_of_config(tool, BROKEN_MODULE.format(line=line))
    assert re.match(rf'error: config .*own.py: the model cannot .*{module}, line 9', printed)
    assert line in printed.split('Traceback', 1)[1]


@pytest.mark.parametrize(
    'line, settings, said',
    [('pass', ', widht=4', "'widht'"), ("raise ValueError('it is odd')", '', 'it is odd')],
)
def test_settings_of_a_new_backbone_are_a_sentence(line, settings, said, message_of_config):
    printed, _ = message_of_config(get_flops, BROKEN_MODULE.format(line=line), settings)
    assert said in printed and 'Traceback' not in printed


@pytest.mark.parametrize(
    'module', ['import torch\n1 / 0\n', 'def f(:\n', 'from torch import x_y\n']
)
def test_a_module_of_a_config_that_fails(module, message_of_config):
    printed, name = message_of_config(check, module)
    assert re.match(rf'error: config .*own.py.*{name}, line [12].*(Zero|Syntax|Import)', printed)
    assert module.splitlines()[-1] in printed.split('Traceback', 1)[1]


@pytest.mark.parametrize(
    'text, line, said',
    [
        ('a = 1\nb = a + "x"\n', 2, 'TypeError'),
        ('a = (1\n', 1, 'SyntaxError'),
        ('def f():\n    return undefined\nb = f()\n', 2, 'NameError'),
    ],
)
def test_an_error_in_a_base_of_a_config_names_file_and_line(text, line, said, tmp_path, message_of):
    (tmp_path / 'base.py').write_text(text)
    (tmp_path / 'child.py').write_text("_base_ = 'base.py'\n")
    printed = message_of(run_tool, lambda: check([str(tmp_path / 'child.py')]))
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


@pytest.mark.parametrize('path', ['~no_user/x', 'a' * 300, 'd/' * 3000 + 'x'], ids=['~', 'a', 'd'])
@pytest.mark.parametrize(
    'line',
    [
        f'train.py {DEMO} --data PATH',
        f'train.py {DEMO} --work-dir PATH --skip-check',
        f'train.py {DEMO} --resume PATH --skip-check',
        'test.py PATH x.pth',
        'convert_weights.py x.pth PATH',
        f'infer.py {DEMO} x.pth PATH',
        f'web.py --model {DEMO} PATH',
    ],
)
def test_paths_that_cannot_be(line, path, tmp_path, monkeypatch, message_of_script):
    monkeypatch.chdir(tmp_path)
    printed = message_of_script(*line.replace('PATH', path).split())
    assert printed.splitlines()[-1].startswith('error: ')
    assert list(tmp_path.iterdir()) == []


def test_a_path_of_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert user_path('~/a') == tmp_path / 'a' and user_path('a/~') == Path('a/~')
    with pytest.raises(MissingFileError, match=r'no home folder ~nobody_here; .*give \./~nobody_'):
        user_path('~nobody_here/a')
