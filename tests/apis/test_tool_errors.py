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

import pytest
import torch
from mmengine.registry import VISBACKENDS
from paths import ROOT

from cyclemlp_mm.apis.arguments import BACKENDS, OPTIONS
from cyclemlp_mm.apis.check import check
from cyclemlp_mm.apis.get_flops import get_flops
from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.export import OPSETS, PARTS
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
    'export.py no_such_config gone.pth new.pt2 --opset 12': r'--opset is for \.onnx',
    'get_flops.py --arch b9': 'b9',
    'get_flops.py --arch b1 --cfg-options model.backbone.arch=b5': '--cfg-options override',
    'infer.py no_such_config gone.pth gone.jpg': 'no_such_config',
    'make_demo_data.py coco data --size 1 1': '32',
    'model_zoo.py --root nowhere': 'nowhere',
    'run_exported.py gone.onnx gone.jpg': r'gone\.jpg: no such file',
    'test.py no_such_config gone.pth': 'no_such_config',
    'test.py cyclemlp_demo gone.pth --cfg-options load_from=x.pth': 'is the second argument',
    'train.py no_such_config': 'no_such_config',
    'train.py cyclemlp_demo --resume --cfg-options load_from=x.pth': 'Give one of them',
    'train.py cyclemlp_demo --amp --cfg-options optim_wrapper.dtype=float16': '--amp is bfloat16',
    'train.py cyclemlp_demo --work-dir a --cfg-options work_dir=b': 'give one of them',
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


@pytest.mark.parametrize(
    'error, said',
    [
        (OSError(errno.EROFS, 'Read-only file system', 'a/b.pth'), 'error: a/b.pth cannot be'),
        (OSError(errno.ENOSPC, 'No space left on device'), 'error: No space .*make room'),
    ],
)
def test_files_that_the_system_refuses(error, said, message_of):
    assert re.match(said, message_of(run_tool, raising(error)))


#: Errors of a process among others with a cause of its own.
CAUSES = [
    ConnectionRefusedError(errno.ECONNREFUSED, 'Connection refused'),  # a logger's server
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


BACKBONE = """
import torch
from mmengine.registry import MODELS

@MODELS.register_module(force=True)
class BrokenBackbone(torch.nn.Module):
    def __init__(self, width=4, init_cfg=None):
        {line}
"""
CONFIG = """
_base_ = '{base}'
custom_imports = dict(imports=['{module}'])
model = dict(backbone=dict(_delete_=True, type='BrokenBackbone'{settings}))
"""


@pytest.mark.parametrize(
    'module, settings, said',
    [
        (BACKBONE.format(line='torch.nn.Conv2d(width)'), '', 'own.py: the model cannot .*, line 8'),
        (BACKBONE.format(line='assert width == 5'), '', 'own.py: the model cannot .*, line 8'),
        (BACKBONE.format(line='super().__init__()'), ', widht=4', "'widht'"),
        (BACKBONE.format(line="raise ValueError('odd')"), '', 'odd'),
        ('import torch\n1 / 0\n', '', 'line 2.*ZeroDivisionError'),
        ('def f(:\n', '', 'line 1.*SyntaxError'),
    ],
)
def test_a_new_backbone_keeps_the_traceback_of_its_code(
    module, settings, said, tmp_path, monkeypatch, message_of
):
    name = f'backbone_{tmp_path.parent.name}_{tmp_path.name}'.replace('-', '_')
    (tmp_path / f'{name}.py').write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    base = ROOT / 'configs' / f'{DEMO}.py'
    text = CONFIG.format(base=base, module=name, settings=settings)
    (tmp_path / 'own.py').write_text(text)
    printed = message_of(run_tool, lambda: get_flops([str(tmp_path / 'own.py')]))
    assert re.match(rf'(?s)error: .*{said}', printed)  # the line is in the traceback
    assert ('Traceback' in printed) == ('line' in said)


@pytest.mark.parametrize(
    'text, line, said', [('a = 1\nb = a + "x"\n', 2, 'TypeError'), ('a = (1\n', 1, 'SyntaxError')]
)
def test_an_error_in_a_base_of_a_config_names_file_and_line(text, line, said, tmp_path, message_of):
    (tmp_path / 'base.py').write_text(text)
    (tmp_path / 'child.py').write_text("_base_ = 'base.py'\n")
    printed = message_of(run_tool, lambda: check([str(tmp_path / 'child.py')]))
    assert re.match(rf'error: config .*base\.py cannot be read: {said}.*line {line}\)', printed)
    assert 'Traceback' not in printed


@pytest.mark.parametrize('path', ['~no_user/x', 'a' * 300, 'd/' * 3000 + 'x'], ids=['~', 'a', 'd'])
@pytest.mark.parametrize(
    'line',
    [
        f'train.py {DEMO} --data PATH',
        f'train.py {DEMO} --resume PATH --skip-check',
        'convert_weights.py x.pth PATH',
        f'infer.py {DEMO} x.pth PATH',
    ],
)
def test_paths_that_cannot_be(line, path, tmp_path, monkeypatch, message_of_script):
    monkeypatch.chdir(tmp_path)
    printed = message_of_script(*line.replace('PATH', path).split())
    assert printed.splitlines()[-1].startswith('error: ')
    assert list(tmp_path.iterdir()) == []


def test_a_current_folder_that_was_removed(tmp_path):
    folder = tmp_path / 'gone'
    folder.mkdir()
    script = f'cd {folder} && rmdir {folder} && {sys.executable} {ROOT}/tools/check.py {DEMO}'
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(['bash', '-c', script], stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr == 'error: the current folder was removed: change to another one\n'
