"""The decisions of tools/setup_env.py; nothing is installed here."""

import re
import subprocess
import sys
from contextlib import nullcontext

import pytest
from paths import ROOT

import doctor
import setup_env


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder with an environment that looks made, for the functions that read one."""
    (tmp_path / 'constraints.txt').write_text('torch==2.11.0\nonedl-mmcv==2.3.6\n')
    (tmp_path / 'setup.py').write_text('')
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    (tmp_path / '.venv' / 'bin' / 'python').write_text('')
    for name in ('VENV', 'PYTHON', 'LOG', 'STAMP', 'CPU_OPS', 'DEV'):
        path = getattr(setup_env, name).relative_to(setup_env.ROOT)
        monkeypatch.setattr(setup_env, name, tmp_path / path)
    monkeypatch.setattr(setup_env, 'ROOT', tmp_path)
    return tmp_path


@pytest.mark.parametrize('version', [(3, 9), (3, 14)])
def test_a_python_without_wheels(version, home, monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (*version, 0))
    with pytest.raises(setup_env.SetupError, match=r'Python 3\..*3\.10 to 3\.13') as caught:
        setup_env.make_venv()
    assert 'PYTHON=' in caught.value.fix


def test_what_compiling_needs(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(setup_env.sysconfig, 'get_path', lambda name: str(tmp_path))
    for name in ('g++', 'Python.h'):
        with pytest.raises(setup_env.SetupError) as caught:
            setup_env.check_compiler()
        assert 'build-essential python3-dev' in caught.value.fix
        (tmp_path / name).touch(0o755)
    setup_env.check_compiler()


@pytest.mark.parametrize(
    'driver_sees, torch_sees, cuda, nvcc, takes, fix',
    [
        (False, False, '13.0', None, False, ''),  # no GPU: nvcc does not matter
        (False, False, 'None', '11.8', False, ''),
        (True, True, '13.0', '13.2', True, ''),  # the minor version may differ
        (False, True, '13.0', '13.0', True, ''),  # a container without nvidia-smi
        (True, True, '13.0', None, 'no nvcc', 'CUDA toolkit 13'),
        (True, True, '13.0', '12.4', r'nvcc is CUDA 12, .* CUDA 13\.0', 'CUDA toolkit 13'),
        (True, True, 'None', '13.0', 'CPU-only build', 'index'),
        (True, False, '13.0', '13.0', 'cannot use it', 'driver for CUDA 13'),
    ],
)
def test_gpu(driver_sees, torch_sees, cuda, nvcc, takes, fix, monkeypatch):
    release = f'Cuda compilation tools, release {nvcc}, V{nvcc}.88' if nvcc else ''
    monkeypatch.setattr(doctor, 'has_gpu', lambda: driver_sees)
    monkeypatch.setattr(doctor, 'ask', lambda command: (0, release))
    state = ('cp312', '2.11.0', cuda, torch_sees, '/cuda')
    monkeypatch.setattr(setup_env, 'torch_state', lambda: state)
    if not fix:
        assert setup_env.takes_gpu() is takes
        return
    with pytest.raises(setup_env.SetupError, match=takes) as caught:
        setup_env.takes_gpu()
    assert fix in caught.value.fix and '--cpu-ops' in caught.value.fix  # the way out is named


def test_force_cuda(monkeypatch):
    """An image is built without a GPU: a variable of mmcv's build asks for its ops."""
    monkeypatch.setenv('FORCE_CUDA', '1')
    monkeypatch.setattr(doctor, 'has_gpu', lambda: False)
    monkeypatch.setattr(doctor, 'ask', lambda command: (0, 'release 13.0, V13.0.88'))
    monkeypatch.setattr(setup_env, 'torch_state', lambda: ('cp312', '2', '13.0', False, '/cuda'))
    assert setup_env.takes_gpu()


def test_hints():
    for text, fix in {
        'ImportError: libGL.so.1: cannot open shared object file': 'headless',
        'RuntimeError: operator torchvision::nms does not exist': 'as a pair',
        "ModuleNotFoundError: No module named 'mmcv._ext'": 'onedl-mmcv',
        'mmcv/_ext.so: undefined symbol: _ZN3c10': 'onedl-mmcv',
        'The virtual environment was not created: ensurepip is not available': 'python3-venv',
        'OSError: [Errno 28] No space left on device': '9 GB',
        'c++: fatal error: Killed signal terminated program cc1plus': 'MAX_JOBS=1',
        'ERROR: No matching distribution found for torch': 'check the network',
    }.items():
        assert fix in doctor.hint(text)
    assert doctor.hint('all is well') == ''


def test_stamp(home, monkeypatch, capsys):
    """An environment that is ready is unchanged; what decides its contents makes it again."""

    def set_up(cpu_ops, dev):
        raise setup_env.SetupError('set up again')

    monkeypatch.setattr(setup_env, 'set_up', set_up)
    for change in (
        lambda: None,
        lambda: (home / 'constraints.txt').write_text('torch==2.12.1\n'),
        setup_env.CPU_OPS.touch,
        setup_env.DEV.touch,
        setup_env.PYTHON.unlink,  # the system's Python went away
    ):
        change()
        assert setup_env.main([]) == 1 and 'set up again' in capsys.readouterr().err
        setup_env.STAMP.write_text(setup_env.current_stamp())
        assert setup_env.main([]) == int(not setup_env.PYTHON.exists())


def test_broken_step_stops(home, monkeypatch, capsys):
    """Exit code 1, the step's last lines, what to do and where the log is; no stamp."""

    def set_up(cpu_ops, dev):
        with setup_env.step('1/1] a step'):
            code = "print('No space left on device'); raise SystemExit(3)"
            setup_env.run(sys.executable, '-c', code)

    monkeypatch.setattr(setup_env, 'set_up', set_up)
    assert setup_env.main([]) == 1
    printed = capsys.readouterr()
    assert '[1/1] a step' in printed.out
    assert re.search(r'failed \(exit code 3\):\nNo space left on device', printed.err)
    assert 'What to do: make room' in printed.err and 'setup.log' in printed.err
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
    if kept:
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

    others = []

    for name, function in dict(
        wheel_folder=lambda gpu: folder,
        takes_gpu=lambda: False,
        ops_state=lambda: states.pop(0),
        compile_mmcv=compile_mmcv,
        install_wheel=install_wheel,
    ).items():
        monkeypatch.setattr(setup_env, name, function)
    fails = states[-1] == 'none'
    with pytest.raises(setup_env.SetupError, match='do not load') if fails else nullcontext():
        setup_env.install_mmcv(cpu_ops=False, install_others=lambda: others.append('others'))
    assert others == ['others']  # once, whether mmcv is compiled or not
    assert folder.exists() != fails  # a wheel without ops is not kept
    assert done == commands and not states


def test_a_wheel_is_kept_by_all_that_it_depends_on(home, monkeypatch):
    state = ('cp312', '2.11.0+cu130', '13.0', True, '/cuda')
    monkeypatch.setattr(setup_env, 'torch_state', lambda: state)
    assert setup_env.wheel_folder(gpu=True).name == 'mmcv2.3.6-cp312-torch2.11.0+cu130-cuda13.0'
    assert setup_env.wheel_folder(gpu=False).name == 'mmcv2.3.6-cp312-torch2.11.0+cu130-cpu'


def test_merge_sources(tmp_path):
    """Two units that compile, although files of one folder share names and define macros."""
    folder = tmp_path / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    (folder / 'cpu').mkdir(parents=True)
    (folder / 'pytorch_cpp_helper.hpp').write_text('#pragma once\nint max(int a);\n')
    (folder / 'pytorch_device_registry.hpp').touch()
    text = '#include "pytorch_cpp_helper.hpp"\n'
    for name in ('nms', 'psamask'):
        (folder / f'{name}.cpp').write_text(text + f'int {name}() {{ return 1; }}')
        macro = '#define max(a, b) (a)\n' if name == 'psamask' else ''
        code = (
            f'{text}{macro}static int add() {{ return 1; }}\nint {name}_cpu() {{ return add(); }}'
        )
        (folder / 'cpu' / f'{name}.cpp').write_text(code)
    (folder / 'cpu' / 'voxelization.cpp').write_text(f'{text}int voxels() {{ return max(1); }}')
    setup_env.merge_sources(tmp_path)
    found = sorted(folder.rglob('*.cpp'))
    assert [p.relative_to(folder).as_posix() for p in found] == ['all_ops.cpp', 'cpu/all_ops.cpp']
    for file in found:
        out = file.with_suffix('.o')
        subprocess.run(['c++', '-I', folder, '-c', file, '-o', out], check=True)
        symbols = subprocess.run(['nm', out], check=True, capture_output=True, text=True).stdout
        expected = (
            ('nms_cpu', 'psamask_cpu', 'voxels') if 'cpu' in file.parts else ('nms', 'psamask')
        )
        assert all(f'{name}v' in symbols for name in expected)


def test_constraints_are_exact_pins():
    text = (ROOT / 'constraints.txt').read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith('#')]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+', line) for line in lines)
    pins = {re.sub('[-_.]+', '-', name).lower(): v for name, v in (x.split('==') for x in lines)}
    assert len(pins) == len(lines) and pins['opencv-python'] == pins['opencv-python-headless']


def test_needs_the_standard_library_only(tmp_path):
    """It runs before anything is installed."""
    command = [sys.executable, '-E', '-S', str(ROOT / 'tools' / 'setup_env.py'), '--help']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and '--cpu-ops' in done.stdout, done.stderr
