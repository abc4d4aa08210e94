"""The decisions of tools/setup_env.py; nothing is installed here."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'setup_env.py'
SPEC = importlib.util.spec_from_file_location('setup_env', SCRIPT)
setup_env = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(setup_env)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder with an environment that looks made, for the functions that read one."""
    (tmp_path / 'constraints.txt').write_text('torch==2.11.0\nonedl-mmcv==2.3.6\n')
    (tmp_path / 'setup.py').write_text('')
    venv = tmp_path / '.venv'
    (venv / 'bin').mkdir(parents=True)
    (venv / 'bin' / 'python').write_text('')
    monkeypatch.setattr(setup_env, 'ROOT', tmp_path)
    monkeypatch.setattr(setup_env, 'VENV', venv)
    for name, path in (
        ('PYTHON', 'bin/python'),
        ('LOG', 'setup.log'),
        ('STAMP', 'setup.stamp'),
        ('CPU_OPS', 'cpu-ops'),
    ):
        monkeypatch.setattr(setup_env, name, venv / path)
    return tmp_path


@pytest.mark.parametrize('version', [(3, 10), (3, 11, 7), (3, 13)])
def test_python_accepted(version):
    assert setup_env.python_problem(version) is None


@pytest.mark.parametrize(
    'version, has_venv, message, fix',
    [
        ((3, 9), True, r'Python 3\.9 cannot be used.*3\.10 to 3\.13', 'PYTHON='),
        ((3, 14), True, r'Python 3\.14 cannot be used', 'PYTHON='),
        ((3, 12), False, 'lacks the venv', r'python3\.12-venv'),
    ],
)
def test_python_refused(version, has_venv, message, fix):
    problem = setup_env.python_problem(version, has_venv)
    assert re.search(message, problem.what)
    assert re.search(fix, problem.fix)


def test_compile_problem():
    assert setup_env.compile_problem('/usr/bin/c++', True) is None
    assert 'build-essential' in setup_env.compile_problem(None, True).fix
    assert 'python3-dev' in setup_env.compile_problem('/usr/bin/c++', False).fix


@pytest.mark.parametrize(
    'driver_sees, torch_sees, torch_cuda, nvcc, release',
    [
        (False, False, '13.0', None, None),  # no GPU: nvcc does not matter
        (False, False, None, 'nvcc', '11.8'),
        (True, True, '13.0', 'nvcc', '13.0'),
        (True, True, '13.0', 'nvcc', '13.2'),  # the minor version may differ
        (False, True, '13.0', 'nvcc', '13.0'),  # a container without nvidia-smi
    ],
)
def test_gpu_accepted(driver_sees, torch_sees, torch_cuda, nvcc, release):
    assert setup_env.gpu_problem(driver_sees, torch_sees, torch_cuda, nvcc, release) is None


@pytest.mark.parametrize(
    'torch_sees, torch_cuda, nvcc, release, message, fix',
    [
        (True, '13.0', None, None, 'no nvcc', 'CUDA toolkit 13'),
        (True, '13.0', 'nvcc', '12.4', r'CUDA 12\.4, but torch .* CUDA 13\.0', 'CUDA toolkit 13'),
        (True, '13.0', 'nvcc', None, 'does not print its version', 'CUDA toolkit 13'),
        (True, None, 'nvcc', '13.0', 'CPU-only build', 'index'),
        (False, '13.0', 'nvcc', '13.0', 'cannot use it', 'driver for CUDA 13'),
    ],
)
def test_gpu_refused(torch_sees, torch_cuda, nvcc, release, message, fix):
    problem = setup_env.gpu_problem(True, torch_sees, torch_cuda, nvcc, release)
    assert re.search(message, problem.what)
    assert fix in problem.fix
    assert '--cpu-ops' in problem.fix  # the way out is always named


def test_nvcc_release():
    text = 'Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0/compiler'
    assert setup_env.nvcc_release(text) == '13.0'
    assert setup_env.nvcc_release('command not found') is None


@pytest.mark.parametrize(
    'variable, expected', [('CUDA_HOME', True), ('CUDA_PATH', True), ('OTHER', False)]
)
def test_find_nvcc(variable, expected, tmp_path, monkeypatch):
    nvcc = tmp_path / 'toolkit' / 'bin' / 'nvcc'
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text('#!/bin/sh\n')
    nvcc.chmod(0o755)
    for name in ('CUDA_HOME', 'CUDA_PATH'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv(variable, str(tmp_path / 'toolkit'))
    assert (setup_env.find_nvcc() == str(nvcc)) is expected


def test_find_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    assert setup_env.find_compiler() is None
    (tmp_path / 'g++').write_text('#!/bin/sh\n')
    (tmp_path / 'g++').chmod(0o755)
    assert setup_env.find_compiler() == str(tmp_path / 'g++')
    monkeypatch.setenv('CXX', 'no-such-compiler')
    assert setup_env.find_compiler() is None


@pytest.mark.parametrize(
    'text, fix',
    [
        ('ImportError: libGL.so.1: cannot open shared object file', 'libgl1'),
        ('RuntimeError: operator torchvision::nms does not exist', 'do not match'),
        ("ModuleNotFoundError: No module named 'mmcv._ext'", "mmcv's ops are missing"),
        ('OSError: [Errno 28] No space left on device', 'disk is full'),
        ('ERROR: No matching distribution found for torch', 'check the network'),
        ('all is well', ''),
    ],
)
def test_hint_for(text, fix):
    hint = setup_env.hint_for(text)
    assert fix in hint
    assert bool(hint) is bool(fix)


def test_fingerprint():
    assert setup_env.fingerprint(['a', b'b']) == setup_env.fingerprint(['a', 'b'])
    assert setup_env.fingerprint(['ab', '']) != setup_env.fingerprint(['a', 'b'])
    assert setup_env.fingerprint(['a', 'b']) != setup_env.fingerprint(['b', 'a'])


def test_tail():
    assert setup_env.tail('a\n\nb\nc\n\n', 2) == 'b\nc'


def test_stamp(home):
    assert not setup_env.is_ready()
    setup_env.STAMP.write_text(setup_env.current_stamp())
    assert setup_env.is_ready()
    (home / 'constraints.txt').write_text('torch==2.12.1\n')
    assert not setup_env.is_ready()
    setup_env.STAMP.write_text(setup_env.current_stamp())
    setup_env.CPU_OPS.touch()  # CPU-only ops, or their end, are a change too
    assert not setup_env.is_ready()
    setup_env.STAMP.write_text(setup_env.current_stamp())
    setup_env.PYTHON.unlink()  # the system's Python went away
    assert not setup_env.is_ready()


def test_ready_environment_is_left_alone(home, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, 'set_up', lambda cpu_ops: pytest.fail('set up again'))
    setup_env.STAMP.write_text(setup_env.current_stamp())
    assert setup_env.main([]) == 0
    assert 'environment ready' in capsys.readouterr().out


def test_broken_step_stops(home, monkeypatch, capsys):
    """Exit code 1, the step's last lines, what to do and where the log is; no stamp."""

    def set_up(cpu_ops):
        steps = setup_env.Steps(total=1)
        steps.start('a step')
        code = "print('No space left on device'); raise SystemExit(3)"
        steps.run([sys.executable, '-c', code], 'the test')

    monkeypatch.setattr(setup_env, 'set_up', set_up)
    assert setup_env.main([]) == 1
    said = capsys.readouterr()
    assert '[1/1] a step' in said.out
    assert re.search(r'the test failed \(exit code 3\):\nNo space left on device', said.err)
    assert 'What to do: the disk is full' in said.err
    assert 'setup.log' in said.err
    assert not setup_env.STAMP.exists()


def test_import_check_names_every_broken_module(home, monkeypatch, capsys):
    setup_env.PYTHON.unlink()
    setup_env.PYTHON.symlink_to(sys.executable)
    monkeypatch.setattr(setup_env, 'MODULES', ('no_such_module', 'platform', 'neither_this'))
    with pytest.raises(setup_env.SetupError, match='no_such_module, neither_this'):
        setup_env.check_imports(setup_env.Steps(total=1))
    lines = [line for line in capsys.readouterr().out.splitlines() if '  ' in line]
    assert [' BROKEN' in line for line in lines] == [True, False, True]


@pytest.mark.parametrize(
    'kept, states, commands',
    [
        (0, ['none', 'cpu'], ['compile', 'install']),
        (1, ['none', 'cpu'], ['install']),
        # A kept wheel whose ops do not load is compiled again,
        (1, ['none', 'none', 'cpu'], ['install', 'compile', 'install']),
        # and ops that load are not touched.
        (1, ['cpu'], []),
    ],
)
def test_install_mmcv(home, monkeypatch, kept, states, commands):
    folder, done = home / 'kept', []
    folder.mkdir()
    for _ in range(kept):
        (folder / 'old.whl').touch()

    def compile_mmcv(steps, where, gpu):
        assert where == folder and not gpu
        (where / 'old.whl').unlink(missing_ok=True)
        (where / 'new.whl').touch()
        done.append('compile')

    def install_wheel(steps, wheel):
        assert wheel.is_file()
        done.append('install')
        return states.pop(0)

    monkeypatch.setattr(setup_env, 'wheel_folder', lambda gpu: folder)
    monkeypatch.setattr(setup_env, 'check_gpu', lambda: False)
    monkeypatch.setattr(setup_env, 'ops_state', lambda: states.pop(0))
    monkeypatch.setattr(setup_env, 'compile_mmcv', compile_mmcv)
    monkeypatch.setattr(setup_env, 'install_wheel', install_wheel)
    setup_env.install_mmcv(setup_env.Steps(total=1), cpu_ops=False)
    assert done == commands and not states


def test_a_wheel_without_ops_is_not_kept(home, monkeypatch):
    folder = home / 'kept'

    def compile_mmcv(steps, where, gpu):
        where.mkdir()
        (where / 'new.whl').touch()

    monkeypatch.setattr(setup_env, 'wheel_folder', lambda gpu: folder)
    monkeypatch.setattr(setup_env, 'check_gpu', lambda: False)
    monkeypatch.setattr(setup_env, 'ops_state', lambda: 'none')
    monkeypatch.setattr(setup_env, 'install_wheel', lambda steps, wheel: 'none')
    monkeypatch.setattr(setup_env, 'compile_mmcv', compile_mmcv)
    with pytest.raises(setup_env.SetupError, match='ops that load'):
        setup_env.install_mmcv(setup_env.Steps(total=1), cpu_ops=False)
    assert not folder.exists()


def test_a_wheel_is_kept_by_all_that_it_depends_on(home, monkeypatch):
    monkeypatch.setattr(setup_env, 'venv_version', lambda: ['3', '12'])
    monkeypatch.setattr(setup_env, 'torch_state', lambda: ('2.11.0+cu130', '13.0', True))
    assert setup_env.wheel_folder(gpu=True).name == 'mmcv2.3.6-cp312-torch2.11.0+cu130-cuda13.0'
    assert setup_env.wheel_folder(gpu=False).name == 'mmcv2.3.6-cp312-torch2.11.0+cu130-cpu'


def test_merge_sources(tmp_path):
    """Each file is compiled once, as it was, and those of the CPU stay apart."""
    folder = tmp_path / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    (folder / 'cpu').mkdir(parents=True)
    for name in ('nms.cpp', 'roi_align.cpp', 'cpu/nms.cpp'):
        (folder / name).write_text(f'// {name}')
    setup_env.merge_sources(tmp_path)
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.cpp'))
    assert found == ['all_ops.cpp', 'cpu/nms.cpp']
    included = re.findall(r'#include "(.*)"', (folder / 'all_ops.cpp').read_text())
    assert [(folder / path).read_text() for path in included] == ['// nms.cpp', '// roi_align.cpp']


def test_pin(home):
    assert setup_env.pin('onedl-mmcv') == '2.3.6'


def test_constraints_are_exact_pins():
    text = (SCRIPT.parents[1] / 'constraints.txt').read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith('#')]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+', line) for line in lines)
    names = [re.sub('[-_.]+', '-', line.split('==')[0]).lower() for line in lines]
    assert len(names) == len(set(names))
    pins = dict(zip(names, (line.split('==')[1] for line in lines), strict=True))
    assert pins['opencv-python'] == pins['opencv-python-headless']


def test_needs_the_standard_library_only():
    """It runs before anything is installed."""
    command = [sys.executable, '-I', '-S', str(SCRIPT), '--help']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '--cpu-ops' in done.stdout
