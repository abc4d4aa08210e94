"""The decisions of tools/setup_env.py; nothing is installed here."""

import re
import subprocess
import sys

import pytest
from paths import ROOT

import doctor
import setup_env


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


@pytest.mark.parametrize('version', [(3, 9), (3, 10), (3, 13), (3, 14)])
def test_pythons_with_wheels(version):
    if version in ((3, 10), (3, 13)):
        return setup_env.check_python(version)
    with pytest.raises(setup_env.SetupError, match=r'Python 3\..*3\.10 to 3\.13') as caught:
        setup_env.check_python(version)
    assert 'PYTHON=' in caught.value.fix


@pytest.mark.parametrize('there', [('g++', 'Python.h'), ('g++',), ('Python.h',)])
def test_what_compiling_needs(there, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(setup_env.sysconfig, 'get_path', lambda name: str(tmp_path))
    for name in there:
        (tmp_path / name).write_text('#!/bin/sh\n')
        (tmp_path / name).chmod(0o755)
    if len(there) == 2:
        return setup_env.check_compiler()
    with pytest.raises(setup_env.SetupError) as caught:
        setup_env.check_compiler()
    assert 'build-essential python3-dev' in caught.value.fix


@pytest.fixture
def machine(monkeypatch):
    """Sets what is found on a machine: the driver's and torch's view of a GPU, torch's CUDA, nvcc's
    release."""

    def has(driver_sees, torch_sees, torch_cuda, release):
        said = f'Cuda compilation tools, release {release}, V{release}.88' if release else ''
        monkeypatch.setattr(doctor, 'has_gpu', lambda: driver_sees)
        monkeypatch.setattr(doctor, 'ask', lambda command: (0, said))
        state = ('2.11.0', torch_cuda, torch_sees, '/cuda')
        monkeypatch.setattr(setup_env, 'torch_state', lambda: state)

    return has


@pytest.mark.parametrize(
    'found, takes',
    [
        ((False, False, '13.0', None), False),  # no GPU: nvcc does not matter
        ((False, False, 'None', '11.8'), False),
        ((True, True, '13.0', '13.0'), True),
        ((True, True, '13.0', '13.2'), True),  # the minor version may differ
        ((False, True, '13.0', '13.0'), True),  # a container without nvidia-smi
    ],
)
def test_gpu_accepted(machine, found, takes):
    machine(*found)
    assert setup_env.takes_gpu() is takes


@pytest.mark.parametrize(
    'found, message, fix',
    [
        ((True, '13.0', None), 'no nvcc', 'CUDA toolkit 13'),
        ((True, '13.0', '12.4'), r'nvcc is CUDA 12, .* CUDA 13\.0', 'CUDA toolkit 13'),
        ((True, 'None', '13.0'), 'CPU-only build', 'index'),
        ((False, '13.0', '13.0'), 'cannot use it', 'driver for CUDA 13'),
    ],
)
def test_gpu_refused(machine, found, message, fix):
    machine(True, *found)
    with pytest.raises(setup_env.SetupError, match=message) as caught:
        setup_env.takes_gpu()
    assert fix in caught.value.fix and '--cpu-ops' in caught.value.fix  # the way out is named


@pytest.mark.parametrize(
    'text, fix',
    [
        ('ImportError: libGL.so.1: cannot open shared object file', 'headless'),
        ('RuntimeError: operator torchvision::nms does not exist', 'as a pair'),
        ("ModuleNotFoundError: No module named 'mmcv._ext'", 'onedl-mmcv'),
        ('mmcv/_ext.so: undefined symbol: _ZN3c10', 'onedl-mmcv'),
        ('The virtual environment was not created: ensurepip is not available', 'python3-venv'),
        ('OSError: [Errno 28] No space left on device', '9 GB'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('ERROR: No matching distribution found for torch', 'check the network'),
        ('all is well', ''),
    ],
)
def test_hints(text, fix):
    assert fix in doctor.hint(text)
    assert bool(doctor.hint(text)) is bool(fix)


def test_stamp(home, monkeypatch, capsys):
    """An environment that is ready is unchanged; what decides its contents makes it again."""

    def set_up(cpu_ops):
        raise setup_env.SetupError('set up again')

    monkeypatch.setattr(setup_env, 'set_up', set_up)
    for change in (
        lambda: None,
        lambda: (home / 'constraints.txt').write_text('torch==2.12.1\n'),
        setup_env.CPU_OPS.touch,
        setup_env.PYTHON.unlink,  # the system's Python went away
    ):
        assert setup_env.main([]) == 1 and 'set up again' in capsys.readouterr().err
        change()
        setup_env.STAMP.write_text(setup_env.current_stamp())
        assert setup_env.main([]) == int(not setup_env.PYTHON.exists())
        setup_env.STAMP.write_text('of another time')
        capsys.readouterr()


def test_broken_step_stops(home, monkeypatch, capsys):
    """Exit code 1, the step's last lines, what to do and where the log is; no stamp."""

    def set_up(cpu_ops):
        with setup_env.step('1/1] a step'):
            code = "print('No space left on device'); raise SystemExit(3)"
            setup_env.run([sys.executable, '-c', code], 'the test')

    monkeypatch.setattr(setup_env, 'set_up', set_up)
    assert setup_env.main([]) == 1
    said = capsys.readouterr()
    assert '[1/1] a step' in said.out
    assert re.search(r'the test failed \(exit code 3\):\nNo space left on device', said.err)
    assert 'What to do: make room' in said.err and 'setup.log' in said.err
    assert not setup_env.STAMP.exists()


@pytest.mark.parametrize(
    'kept, states, commands',
    [
        (0, ['none', 'CPU only'], ['compile', 'install']),
        (1, ['none', 'CPU only'], ['install']),
        # A kept wheel whose ops do not load is compiled again,
        (1, ['none', 'none', 'CPU only'], ['install', 'compile', 'install']),
        # and ops that load are not touched.
        (1, ['CPU only'], []),
        (0, ['none', 'none'], ['compile', 'install']),
    ],
)
def test_install_mmcv(home, monkeypatch, kept, states, commands):
    folder, done = home / 'kept', []
    folder.mkdir()
    for _ in range(kept):
        (folder / 'old.whl').touch()

    def compile_mmcv(where, gpu):
        assert where == folder and not gpu
        (where / 'old.whl').unlink(missing_ok=True)
        (where / 'new.whl').touch()
        done.append('compile')

    def install_wheel(wheel):
        assert wheel.is_file()
        done.append('install')
        return states.pop(0)

    monkeypatch.setattr(setup_env, 'wheel_folder', lambda gpu: folder)
    monkeypatch.setattr(setup_env, 'takes_gpu', lambda: False)
    monkeypatch.setattr(setup_env, 'ops_state', lambda: states.pop(0))
    monkeypatch.setattr(setup_env, 'compile_mmcv', compile_mmcv)
    monkeypatch.setattr(setup_env, 'install_wheel', install_wheel)
    if states[-1] == 'none':
        with pytest.raises(setup_env.SetupError, match='ops that load'):
            setup_env.install_mmcv(cpu_ops=False)
        assert not folder.exists()  # a wheel without ops is not kept
    else:
        setup_env.install_mmcv(cpu_ops=False)
    assert done == commands and not states


def test_a_wheel_is_kept_by_all_that_it_depends_on(home, monkeypatch):
    monkeypatch.setattr(setup_env, 'venv_version', lambda: (3, 12))
    state = ('2.11.0+cu130', '13.0', True, '/cuda')
    monkeypatch.setattr(setup_env, 'torch_state', lambda: state)
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


def test_constraints_are_exact_pins():
    text = (ROOT / 'constraints.txt').read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith('#')]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+', line) for line in lines)
    names = [re.sub('[-_.]+', '-', line.split('==')[0]).lower() for line in lines]
    assert len(names) == len(set(names))
    pins = dict(zip(names, (line.split('==')[1] for line in lines), strict=True))
    assert pins['opencv-python'] == pins['opencv-python-headless']


def test_needs_the_standard_library_only(tmp_path):
    """It runs before anything is installed."""
    command = [sys.executable, '-E', '-S', str(ROOT / 'tools' / 'setup_env.py'), '--help']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '--cpu-ops' in done.stdout
